# mypy: disallow-untyped-defs=False
"""The lookup convolution's loops for GPUs, in Triton: the table, sums of its rows, and its gradient.

No kernel is specialized for sizes and strides of tensors: a new batch or image size compiles nothing. `pitch` is the
distance from a pixel of the feature map to the next; B, C, H, W are sizes of the levels and sb, sc, sy, sx strides, of
levels or weight; OH, OW those of the feature map; OUT its channels, in blocks of BO.
"""

import triton
import triton.language as tl

SHAPE = ('P', 'B', 'C', 'H', 'W', 'OH', 'OW', 'sb', 'sc', 'sy', 'sx', 'sh', 'sw', 'top', 'left', 'dh', 'dw')
GRID = ('GH', 'GW', 'up', 'back', 'chunks', 'per_group')


@triton.jit(do_not_specialize=('C', 'so', 'sm', 'sy', 'sx'))
def code_table(
    codes, weight, table, C, so, sm, sy, sx,
    KW: tl.constexpr, M: tl.constexpr, OUT: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr,
    LATENT: tl.constexpr,
):  # fmt: skip
    """Write BK of the 257 rows of one tap: products of (256, M) codes, or latents, with the weights of BO channels."""
    tap = tl.program_id(0)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    weights = weight + o * so + (tap // KW) % C * sm + tap // (KW * C) * sy + tap % KW * sx
    total = tl.zeros((BK, BO), dtype=tl.float32)
    for first in range(0, M, BM):
        m = first + tl.arange(0, BM)
        code_ok = (k < 256)[:, None] & (m < M)[None, :]
        code = tl.load(codes + k[:, None] * M + m[None, :], mask=code_ok, other=0)
        if LATENT:
            code = (code >= 0) & code_ok
        taps = tl.load(weights[None, :] + (m * C * sm)[:, None], mask=(m < M)[:, None] & (o < OUT)[None, :], other=0)
        total = tl.dot(code.to(tl.float32), taps.to(tl.float32), total, input_precision='ieee')
    where = table + (tap * 257 + k)[:, None] * OUT + o[None, :]
    tl.store(where, total.to(table.dtype.element_ty), mask=(k < 257)[:, None] & (o < OUT)[None, :])


@triton.jit
def through_sign(grad, latents, found, numbers, N: tl.constexpr):
    """Write (1 - |w|) grad where |w| < 1, else 0."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    w = tl.load(latents + i, mask=i < numbers, other=0)
    upstream = tl.load(grad + i, mask=i < numbers, other=0)
    slope = tl.maximum(1 - tl.abs(w), 0.0)
    tl.store(found + i, upstream * slope, mask=i < numbers)


@triton.jit
def smoothness(weights, angles, gradient, rows, M, share, BM: tl.constexpr):
    """Write 1 - cosine of one row of a table with the next, and the gradient of their sum; both times `share`."""
    k = tl.program_id(0)
    m = tl.arange(0, BM)
    row = tl.load(weights + k * M + m, mask=m < M, other=0)
    before = tl.load(weights + (k - 1) * M + m, mask=(k > 0) & (m < M), other=0)
    after = tl.load(weights + (k + 1) * M + m, mask=(k + 1 < rows) & (m < M), other=0)
    row_scale, before_scale, after_scale = one_over_norm(row), one_over_norm(before), one_over_norm(after)
    before_cosine = tl.sum(row * before, 0) * row_scale * before_scale
    after_cosine = tl.sum(row * after, 0) * row_scale * after_scale
    change = (before_cosine + after_cosine) * row_scale * row - before_scale * before - after_scale * after
    tl.store(gradient + k * M + m, change * row_scale * share, mask=m < M)
    tl.store(angles + k, (1 - after_cosine) * share, mask=k + 1 < rows)


@triton.jit
def one_over_norm(row):
    """Return one over the norm of a row, and 0 for a norm of 0."""
    squares = tl.sum(row * row, 0)
    return 1 / tl.sqrt(tl.where(squares == 0, float('inf'), squares))


@triton.jit
def corner_of(p, levels, OH, OW, sb, sy, sx, sh, sw, top, left):
    """Return where the windows of output pixels p begin: the address of their first level, its row and its column."""
    top_row = (p // OW) % OH * sh - top
    left_column = p % OW * sw - left
    return levels + (p // (OW * OH)).to(tl.int64) * sb + top_row * sy + left_column * sx, top_row, left_column


@triton.jit(do_not_specialize=SHAPE)
def code_product(
    levels, codes, taps, features, pitch, P, C, H, W, OH, OW, sb, sc, sy, sx, sh, sw, top, left, dh, dw,
    KH: tl.constexpr, KW: tl.constexpr, M: tl.constexpr, OUT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    BO: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Convolve the planes of (257, M) codes, whose rows are looked up where they are multiplied (implicit GEMM).

    `taps` is (KH, C, KW, M, OUT).
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    o_ok = (o < OUT)[None, :]
    corner, top_row, left_column = corner_of(p, levels, OH, OW, sb, sy, sx, sh, sw, top, left)
    total = tl.zeros((BP, BO), dtype=tl.float32)
    blocks: tl.constexpr = (M + BM - 1) // BM
    for y in range(KH):
        row_ok = (p < P) & (top_row + y * dh >= 0) & (top_row + y * dh < H)
        for c in range(C):
            for step in range(KW * blocks):
                x = step // blocks
                m = step % blocks * BM + tl.arange(0, BM)
                inside = row_ok & (left_column + x * dw >= 0) & (left_column + x * dw < W)
                level = tl.load(corner + c * sc + y * dh * sy + x * dw * sx, mask=inside, other=0).to(tl.int32)
                row = tl.where(inside, level, 256)
                code = tl.load(codes + row[:, None] * M + m[None, :], mask=(m < M)[None, :], other=0)
                weights = taps + (((y * C + c) * KW + x) * M + m)[:, None] * OUT + o[None, :]
                weight = tl.load(weights, mask=(m < M)[:, None] & o_ok, other=0)
                if INTERPRETED:
                    code = code.to(tl.float32)  # the interpreter's product takes bfloat16 for integers
                    weight = weight.to(tl.float32)
                total = tl.dot(code, weight, total, input_precision=PRECISION)
    where = features + p.to(tl.int64)[:, None] * pitch + o[None, :]
    tl.store(where, total.to(features.dtype.element_ty), mask=(p < P)[:, None] & o_ok)


@triton.jit(do_not_specialize=SHAPE)
def gather_sum(
    levels, table, features, pitch, P, C, H, W, OH, OW, sb, sc, sy, sx, sh, sw, top, left, dh, dw,
    KH: tl.constexpr, KW: tl.constexpr, OUT: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Write the sums of the rows of table (KH, C, KW, 257, OUT) for BP of P output pixels, tap after tap."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    o_ok = (o < OUT)[None, :]
    corner, top_row, left_column = corner_of(p, levels, OH, OW, sb, sy, sx, sh, sw, top, left)
    total = tl.zeros((BP, BO), dtype=tl.float32)
    for y in range(KH):
        row_ok = (p < P) & (top_row + y * dh >= 0) & (top_row + y * dh < H)
        for c in range(C):
            rows = table + (y * C + c) * (KW * 257 * OUT) + o
            for x in tl.static_range(KW):
                inside = row_ok & (left_column + x * dw >= 0) & (left_column + x * dw < W)
                level = tl.load(corner + c * sc + y * dh * sy + x * dw * sx, mask=inside, other=0).to(tl.int32)
                row = tl.where(inside, level, 256) + x * 257
                total += tl.load(rows[None, :] + row[:, None] * OUT, mask=o_ok, other=0).to(tl.float32)
    where = features + p.to(tl.int64)[:, None] * pitch + o[None, :]
    tl.store(where, total.to(features.dtype.element_ty), mask=(p < P)[:, None] & o_ok)


@triton.jit(do_not_specialize=SHAPE + GRID)
def partition(
    levels, keys, starts, B, C, H, W, sb, sc, sy, sx, sh, sw, GH, GW, chunks,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Sort CHUNK pixels of one color and stride phase (row mod sh, column mod sw) into 16 ranges of 16 levels.

    Places are counted image by image within the phase, whose rows and columns a grid of GH x GW holds. A key, 16 bits,
    is the level within its range and the pixel's place in the chunk, 12 bits. The order of pixels in a range stays.
    """
    chunk = tl.program_id(0) % chunks
    phase = tl.program_id(0) // chunks  # color, row, column
    place = tl.arange(0, CHUNK)
    n = chunk * CHUNK + place
    row = (n // GW) % GH * sh + (phase // sw) % sh
    column = n % GW * sw + phase % sw
    image = n // (GW * GH)
    inside = (image < B) & (row < H) & (column < W)
    pixel = levels + image.to(tl.int64) * sb + phase // (sw * sh) * sc + row * sy + column * sx
    level = tl.load(pixel, mask=inside, other=0).to(tl.int32)
    in_range = tl.where(inside, level // 16, -1)
    place_in_keys = tl.zeros((CHUNK,), dtype=tl.int32)
    first = 0
    boundaries = starts + tl.program_id(0) * 17
    for r in range(0, 16, 2):  # two ranges are counted in the halves of one number
        lower, upper = in_range == r, in_range == r + 1
        one = tl.where(lower, 1, tl.where(upper, 65536, 0))
        before = tl.cumsum(one, 0) - one
        both = tl.sum(one, 0)
        second = first + (both & 65535)
        place_in_keys = tl.where(lower, first + (before & 65535), place_in_keys)
        place_in_keys = tl.where(upper, second + (before >> 16), place_in_keys)
        tl.store(boundaries + r, first)
        tl.store(boundaries + r + 1, second)
        first = second + (both >> 16)
    tl.store(boundaries + 16, first)
    key = (level % 16) * 4096 + place
    tl.store(keys + tl.program_id(0).to(tl.int64) * CHUNK + place_in_keys, key.to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=SHAPE + GRID)
def bucket_sum(
    keys, starts, grad, partial, C, sh, sw, top, left, dh, dw, up, back, GW, chunks, per_group,
    KH: tl.constexpr, KW: tl.constexpr, STEP: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr, K: tl.constexpr,
    BT: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of the output pixels that read 16 levels through a row of taps, in one group of chunks.

    A product with the 16 x K matrix that says which of K pixels has which level; K at a time, in the order of the keys.
    Every STEP-th tap of a kernel row reads the same phase: BT of them are taken at once. `grad` is
    (B, GH, GW, OUT), and a tap reads it at the place of the pixel in that grid, moved by as much for all pixels;
    `up` and `back` move the first output pixel. `partial` is (groups, 256, taps, OUT).
    """
    y = tl.program_id(0) // (STEP * C)
    c = tl.program_id(0) // STEP % C
    x_first = tl.program_id(0) % STEP
    r = tl.program_id(1) % 16
    group = tl.program_id(1) // 16
    blocks: tl.constexpr = (OUT + BO - 1) // BO
    j = tl.arange(0, BT * BO)
    x = x_first + (tl.program_id(2) // blocks * BT + j // BO) * STEP
    o = tl.program_id(2) % blocks * BO + j % BO
    ok = ((x < KW) & (o < OUT))[None, :]
    # level's row = output row * sh + down; division truncates, so the phase is made positive before
    down = y * dh - top
    right = x_first * dw - left
    down_phase = (down % sh + sh) % sh
    right_phase = (right % sw + sw) % sw
    phase = (c * sh + down_phase) * sw + right_phase
    moved = (up - (down - down_phase) // sh) * GW + back - (x * dw - left - right_phase) // sw
    rows = grad + moved * OUT + o
    within = tl.arange(0, K)
    levels = tl.arange(0, 16)
    total = tl.zeros((16, BT * BO), dtype=tl.float32)
    for chunk in range(group * per_group, tl.minimum((group + 1) * per_group, chunks)):
        at = phase * chunks + chunk
        last = tl.load(starts + at * 17 + r + 1)
        for first in range(tl.load(starts + at * 17 + r), last, K):
            listed = first + within < last
            key = tl.load(keys + at.to(tl.int64) * CHUNK + first + within, mask=listed, other=0).to(tl.int32) & 0xFFFF
            n = (chunk * CHUNK + key % 4096).to(tl.int64)
            row = tl.load(rows[None, :] + n[:, None] * OUT, mask=listed[:, None] & ok, other=0)
            if INTERPRETED:
                row = row.to(tl.float32)  # the interpreter's product takes bfloat16 for integers
            has_level = (key // 4096)[None, :] == levels[:, None]
            total = tl.dot(has_level.to(row.dtype), row, total, input_precision=PRECISION)
    level_rows = (group * 256 + r * 16 + levels).to(tl.int64) * (KH * C * KW * OUT)
    tap_rows = ((y * C + c) * KW + x) * OUT + o
    tl.store(partial + level_rows[:, None] + tap_rows[None, :], total, mask=ok)
