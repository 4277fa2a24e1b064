"""The lookup convolution in plain torch: the reference, and what runs where no compiled kernel does.

The planes of codes are built and convolved, a few images at a time, so that memory is bounded: M planes of a color are
M times its pixels. TorchScript compiles `convolve_codes` and `sum_rows`, and ONNX export traces them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

_PLANE_BYTES = 2**28  # of code planes, or of looked-up rows, that exist at once


def convolve_codes(
    levels: Tensor, codes: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Look codes up and convolve their planes: `lookup_conv2d` for checked arguments, the obvious way.

    The planes are laid out color-major in channels_last memory, where a lookup writes them, and the kernel's input
    channels, far fewer bytes, are permuted to match. `padding` is (height, width) or (left, right, top, bottom).
    """
    if len(padding) == 4:
        levels, codes, padding = _pad_levels(levels, padding), F.pad(codes, (0, 0, 0, 1)), [0, 0]
    planes = _code_planes(levels, codes, weight.dtype)
    return F.conv2d(planes, _color_major(weight, codes.shape[1]), None, stride, padding, dilation)


def _pad_levels(levels: Tensor, padding: list[int]) -> Tensor:
    """Return int32 levels with 256, the row after the codes', around them: planes, M times larger, are not copied."""
    return F.pad(levels.int(), padding, value=256.0)


def _code_planes(levels: Tensor, codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the (B, C M, H, W) planes, plane c M + m, in channels_last memory."""
    # the gradient of a code sums over many pixels: gather before the cast, so that it is summed in float32
    # (torch.jit.trace checks its graph without gradients, and the graph must not depend on that)
    table = codes if codes.requires_grad or torch.jit.is_tracing() else codes.to(dtype)
    return F.embedding(levels.permute(0, 2, 3, 1).int(), table).to(dtype).flatten(3).permute(0, 3, 1, 2)


def _color_major(weight: Tensor, bits: int) -> Tensor:
    """Return the kernel with its input planes in the order c M + m instead of m C + c; its own inverse."""
    kernel = weight.reshape(weight.shape[0], bits, weight.shape[1] // bits, weight.shape[2], weight.shape[3])
    return kernel.transpose(1, 2).reshape(weight.shape)


def lookup_conv2d(
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """Return `convolve_codes` in `dtype`, without a graph; `padding` is (left, right, top, bottom)."""
    kernel = weight.to(_compute_dtype(levels, dtype))
    features = [
        convolve_codes(chunk, codes, kernel, stride, padding, dilation).to(dtype)
        for chunk in levels.split(_images_at_once(levels, codes.shape[1], kernel))
    ]
    return torch.cat(features)


def lookup_conv2d_backward(
    grad: Tensor,
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    needs_codes: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of codes (zeros unless `needs_codes`) and weight; the planes are built once more."""
    dtype = _compute_dtype(levels, grad.dtype)
    kernel = _color_major(weight.to(dtype), codes.shape[1])
    chunk = _images_at_once(levels, codes.shape[1], kernel)
    # sums over chunks, at least in float32
    codes_grad = torch.zeros_like(codes, dtype=torch.promote_types(codes.dtype, torch.float32))
    kernel_grad = torch.zeros_like(kernel, dtype=torch.promote_types(weight.dtype, torch.float32))
    rows = F.pad(codes, (0, 0, 0, 1))
    padded = _pad_levels(levels, padding)
    for some_levels, some_grad in zip(padded.split(chunk), grad.to(dtype).split(chunk), strict=True):
        planes = _code_planes(some_levels, rows, dtype)
        kernel_grad += conv_grad.conv2d_weight(planes, kernel.shape, some_grad, stride, 0, dilation)
        if needs_codes:
            planes_grad = conv_grad.conv2d_input(planes.shape, kernel, some_grad, stride, 0, dilation)
            rows_grad = planes_grad.permute(0, 2, 3, 1).unflatten(3, (-1, codes.shape[1])).to(codes_grad.dtype)
            index = some_levels.permute(0, 2, 3, 1).long()
            # what back-propagation through F.embedding calls; unlike index_add it sums in a fixed order on a GPU
            codes_grad += torch.ops.aten.embedding_dense_backward(rows_grad, index, 257, 256, False)[:256]
    colors = weight.shape[1] // codes.shape[1]
    return codes_grad.to(codes.dtype), torch.empty_like(weight).copy_(_color_major(kernel_grad, colors))


def _compute_dtype(levels: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Over 3 M planes, CPU convolutions are slower in half precision than in float32, backward above all."""
    return torch.float32 if levels.device.type == 'cpu' and dtype.itemsize == 2 else dtype


def _images_at_once(levels: Tensor, numbers: int, like: Tensor) -> int:
    """Return how many images fit `_PLANE_BYTES` if each level becomes so many numbers of the dtype of `like`."""
    return max(1, _PLANE_BYTES // max(levels[:1].numel() * numbers * like.element_size(), 1))


def sum_rows(levels: Tensor, table: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Sum table rows in float32 (float64 for a float64 table): `table_conv2d`, the obvious way."""
    index = _pad_levels(levels, padding)
    kh, chans, kw = table.shape[0], table.shape[1], table.shape[2]
    height = index.shape[2] - (kh - 1) * dilation[0]
    width = index.shape[3] - (kw - 1) * dilation[1]
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    first_rows = 257 * torch.arange(chans * kw, device=table.device, dtype=torch.int32)  # of a kernel row's taps
    features = torch.zeros(1, dtype=dtype, device=table.device)
    for y in range(kh):
        top = y * dilation[0]
        taps: list[Tensor] = []
        for x in range(kw):
            left = x * dilation[1]
            taps.append(index[:, :, top : top + height : stride[0], left : left + width : stride[1]])
        rows = torch.stack(taps, dim=2).flatten(1, 2).permute(0, 2, 3, 1) + first_rows
        features = features + F.embedding(rows, table[y].flatten(0, 2)).sum(3, dtype=dtype)
    return features.permute(0, 3, 1, 2)


def table_conv2d(
    levels: Tensor, table: Tensor, stride: list[int], padding: list[int], dilation: list[int], dtype: torch.dtype
) -> Tensor:
    """Return `sum_rows` in `dtype`, a few images at a time."""
    chunks = levels.split(_images_at_once(levels, table.shape[2] * table.shape[4], table))
    return torch.cat([sum_rows(chunk, table, stride, padding, dilation).to(dtype) for chunk in chunks])
