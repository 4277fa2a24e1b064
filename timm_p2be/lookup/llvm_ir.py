"""The two loops of the lookup convolution as LLVM IR: sum table rows (forward) and add to table rows (backward).

Both are built once for a number of channels and a dtype; every size, stride and offset is a run-time argument. In
Python, with `pixel` running over the output pixels and `start` being where the kernel window of a pixel begins in its
padded image:

    forward    features[pixel] = sum over taps j of table[j, index[start + offsets[j]]]
    backward   table[j, index[start + offsets[j]]] += features[pixel]      for every tap j

A tap is one weight position of the kernel: row, color, column. The row of a pixel, `channels` numbers, is held in
vector registers while the taps go by. Work is handed out by an atomic counter, so the same function serves one thread
or many, and every number is summed in the same order whatever their count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir

LEVELS = 257  # rows of a tap: 256 levels, and one of zeros that padding points to
MAX_ROW = 64  # channels of a pixel that are summed at once: four AVX-512 registers, or sixteen of SSE and NEON

# what the functions are passed: one array of 64-bit integers, pointers among them
ARGUMENTS = (
    'next_unit',  # shared counter of the units handed out
    'next_scratch',  # shared counter of the threads that came for scratch memory
    'units',
    'features',  # (images, rows, columns, channels), a pixel `pitch` numbers after the one before
    'index',  # uint16 levels, padded with 256
    'table',  # (taps, 257, channels)
    'offsets',  # (taps,) int64, in elements of `index`
    'scratch',  # float32 sums of a tile of pixels, one piece for each thread (forward)
    'scratch_bytes',  # of a piece
    'images',
    'rows',
    'columns',
    'channels',
    'pitch',
    'taps',
    'taps_at_once',  # so many that their rows stay in cache: a pass over a tile (forward), a unit (backward)
    'tile_rows',  # rows of output pixels in a unit (forward)
    'image_stride',  # steps in `index`, in elements: to the next image,
    'row_stride',  # the next output row,
    'column_stride',  # and the next output column
)

_BIT, _BYTE, _HALF, _INT, _LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_FLOAT = ir.FloatType()
_POINTER = ir.PointerType()


class Shape(NamedTuple):
    """What a function is compiled for."""

    lanes: int  # float32 numbers in a vector
    vectors: int  # that are summed at once; lanes * vectors channels are a block
    size: int  # bytes of a number in features and forward's table: 4 is float32, 2 is bfloat16

    @property
    def block(self) -> int:
        """Channels that are summed at once."""
        return self.lanes * self.vectors


def shape_for(channels: int, size: int) -> Shape:
    """Return the shape for rows of `channels` numbers of `size` bytes; blocks of it divide the row evenly."""
    lanes = next(lanes for lanes in (16, 8, 4, 2, 1) if channels % lanes == 0)
    vectors = next(n for n in range(MAX_ROW // max(lanes, 8), 0, -1) if channels // lanes % n == 0)
    return Shape(lanes, vectors, size)


class _Function:
    """One function under construction: its builder, its arguments, and the few statements both loops are made of."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.shape = shape
        self.module = ir.Module(name)
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [_POINTER]), name)
        self.builder = ir.IRBuilder(function.append_basic_block('entry'))
        self.vector = ir.VectorType(_FLOAT, shape.lanes)
        self.slots = {
            name: self.builder.gep(function.args[0], [_LONG(8 * i)], source_etype=_BYTE)
            for i, name in enumerate(ARGUMENTS)
        }

    def value(self, name: str) -> ir.Value:
        """Load an argument that is a number."""
        return self.builder.load(self.slots[name], typ=_LONG)

    def pointer(self, name: str) -> ir.Value:
        """Load an argument that is a pointer."""
        return self.builder.inttoptr(self.value(name), _POINTER)

    def take(self, counter: str) -> ir.Value:
        """Return the shared counter's value and raise it by one."""
        return self.builder.atomic_rmw('add', self.slots[counter], _LONG(1), 'monotonic')

    def at(self, pointer: ir.Value, count: ir.Value, size: int = 1) -> ir.Value:
        """Return `pointer` moved on by `count` elements of `size` bytes."""
        return self.builder.gep(pointer, [count], source_etype=ir.ArrayType(_BYTE, size))

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return min(a, b)."""
        return self.builder.select(self.builder.icmp_signed('<', a, b), a, b)

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, step: ir.Value | None = None) -> Iterator[ir.Value]:
        """Put what is built inside into `for i in range(start, stop, step)`; `step` is 1 by default."""
        b = self.builder
        with b.goto_entry_block():
            variable = b.alloca(_LONG)  # LLVM turns it into a register
        b.store(start, variable)
        head, body, end = (b.append_basic_block(part) for part in ('head', 'body', 'end'))
        b.branch(head)
        b.position_at_end(head)
        i = b.load(variable, typ=_LONG)
        b.cbranch(b.icmp_signed('<', i, stop), body, end)
        b.position_at_end(body)
        yield i
        b.store(b.add(i, step or _LONG(1)), variable)
        b.branch(head)
        b.position_at_end(end)

    @contextmanager
    def units(self) -> Iterator[ir.Value]:
        """Put what is built inside into `while (unit := next_unit++) < units`, and end the function after it."""
        b = self.builder
        head, body, end = (b.append_basic_block(part) for part in ('unit', 'work', 'done'))
        b.branch(head)
        b.position_at_end(head)
        unit = self.take('next_unit')
        b.cbranch(b.icmp_signed('<', unit, self.value('units')), body, end)
        b.position_at_end(body)
        yield unit
        b.branch(head)
        b.position_at_end(end)
        b.ret_void()

    def read(self, pointer: ir.Value, size: int) -> list[ir.Value]:
        """Load a block of numbers of `size` bytes as float32 vectors."""
        b, lanes = self.builder, self.shape.lanes
        vectors = []
        for i in range(self.shape.vectors):
            address = b.gep(pointer, [_LONG(i * lanes * size)], source_etype=_BYTE)
            if size == 4:
                vectors.append(b.load(address, typ=self.vector, align=4))
            else:  # a bfloat16 is the upper half of a float32
                bits = b.load(address, typ=ir.VectorType(_HALF, lanes), align=2)
                wide = b.shl(b.zext(bits, ir.VectorType(_INT, lanes)), self._splat(16))
                vectors.append(b.bitcast(wide, self.vector))
        return vectors

    def write(self, vectors: list[ir.Value], pointer: ir.Value, size: int) -> None:
        """Store float32 vectors as a block of numbers of `size` bytes."""
        b = self.builder
        for i, vector in enumerate(vectors):
            address = b.gep(pointer, [_LONG(i * self.shape.lanes * size)], source_etype=_BYTE)
            b.store(vector if size == 4 else self._bfloat16(vector), address, align=size)

    def _bfloat16(self, vector: ir.Value) -> ir.Value:
        """Round to the nearest bfloat16, ties to even, NaN staying NaN; in integers, which any processor has."""
        b = self.builder
        bits = b.bitcast(vector, ir.VectorType(_INT, self.shape.lanes))
        last_bit = b.and_(b.lshr(bits, self._splat(16)), self._splat(1))
        rounded = b.lshr(b.add(bits, b.add(last_bit, self._splat(0x7FFF))), self._splat(16))
        rounded = b.select(b.fcmp_unordered('uno', vector, vector), self._splat(0x7FC0), rounded)
        return b.trunc(rounded, ir.VectorType(_HALF, self.shape.lanes))

    def _splat(self, value: int) -> ir.Constant:
        return ir.Constant(ir.VectorType(_INT, self.shape.lanes), [value] * self.shape.lanes)

    def split(self, unit: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return which group of work and which first channel a unit stands for; units of a group are its blocks."""
        b = self.builder
        blocks = b.sdiv(self.value('channels'), _LONG(self.shape.block))
        return b.sdiv(unit, blocks), b.mul(b.srem(unit, blocks), _LONG(self.shape.block))

    def features_at(self, image: ir.Value, y: ir.Value, x: ir.Value, channel: ir.Value) -> ir.Value:
        """Return the address of a pixel's block in `features`."""
        b = self.builder
        pixel = b.add(b.mul(b.add(b.mul(image, self.value('rows')), y), self.value('columns')), x)
        number = b.add(b.mul(pixel, self.value('pitch')), channel)
        return self.at(self.pointer('features'), number, self.shape.size)

    @contextmanager
    def table_rows(
        self, image: ir.Value, y: ir.Value, x: ir.Value, channel: ir.Value, first: ir.Value, last: ir.Value, size: int
    ) -> Iterator[ir.Value]:
        """Put what is built inside into a loop over the taps first..last; it gets the address of the pixel's row."""
        b = self.builder
        steps = (image, 'image_stride'), (y, 'row_stride'), (x, 'column_stride')
        start = self.pointer('index')
        for count, stride in steps:
            start = self.at(start, b.mul(count, self.value(stride)), 2)
        row_bytes = b.mul(self.value('channels'), _LONG(size))
        table, tap_bytes = self.at(self.pointer('table'), channel, size), b.mul(row_bytes, _LONG(LEVELS))
        offsets = self.pointer('offsets')
        with self.loop(first, last) as tap:
            offset = b.load(self.at(offsets, tap, 8), typ=_LONG)
            level = b.zext(b.load(self.at(start, offset, 2), typ=_HALF), _LONG)
            yield self.at(self.at(table, b.mul(tap, tap_bytes)), b.mul(level, row_bytes))


def forward(shape: Shape) -> str:
    """Return the IR of `forward`. A unit is a tile of rows of one image, times a block of channels.

    A tile is passed over once for every `taps_at_once` taps; between passes its sums wait in scratch memory.
    """
    f = _Function('forward', shape)
    b = f.builder
    piece = b.mul(f.take('next_scratch'), f.value('scratch_bytes'))
    scratch = f.at(f.pointer('scratch'), piece)
    with b.goto_entry_block():
        sums = [b.alloca(f.vector) for _ in range(shape.vectors)]
    zero = [ir.Constant(f.vector, [0.0] * shape.lanes)] * shape.vectors
    rows, columns, taps = f.value('rows'), f.value('columns'), f.value('taps')
    tile_rows, at_once = f.value('tile_rows'), f.value('taps_at_once')
    tiles = b.sdiv(b.add(rows, b.sub(tile_rows, _LONG(1))), tile_rows)

    def set_sums(values: list[ir.Value]) -> None:
        for variable, value in zip(sums, values, strict=True):
            b.store(value, variable)

    def get_sums() -> list[ir.Value]:
        return [b.load(variable, typ=f.vector) for variable in sums]

    with f.units() as unit:
        group, channel = f.split(unit)
        image, top = b.sdiv(group, tiles), b.mul(b.srem(group, tiles), tile_rows)
        bottom = f.smaller(b.add(top, tile_rows), rows)
        with f.loop(_LONG(0), taps, at_once) as first:
            last = f.smaller(b.add(first, at_once), taps)
            with f.loop(top, bottom) as y, f.loop(_LONG(0), columns) as x:
                pixel = b.add(b.mul(b.sub(y, top), columns), x)
                waiting = f.at(scratch, pixel, 4 * shape.block)
                with b.if_else(b.icmp_signed('==', first, _LONG(0))) as (begins, goes_on):
                    with begins:
                        set_sums(zero)
                    with goes_on:
                        set_sums(f.read(waiting, 4))
                with f.table_rows(image, y, x, channel, first, last, shape.size) as row:
                    set_sums([b.fadd(s, r) for s, r in zip(get_sums(), f.read(row, shape.size), strict=True)])
                with b.if_else(b.icmp_signed('==', last, taps)) as (ends, waits):
                    with ends:
                        f.write(get_sums(), f.features_at(image, y, x, channel), shape.size)
                    with waits:
                        f.write(get_sums(), waiting, 4)
    return str(f.module)


def backward(shape: Shape) -> str:
    """Return the IR of `backward`. A unit is `taps_at_once` taps, times a block of channels; the table is float32."""
    f = _Function('backward', shape)
    b = f.builder
    images, rows, columns = f.value('images'), f.value('rows'), f.value('columns')
    taps, at_once = f.value('taps'), f.value('taps_at_once')
    with f.units() as unit:
        group, channel = f.split(unit)
        first = b.mul(group, at_once)
        last = f.smaller(b.add(first, at_once), taps)
        with f.loop(_LONG(0), images) as image, f.loop(_LONG(0), rows) as y, f.loop(_LONG(0), columns) as x:
            grad = f.read(f.features_at(image, y, x, channel), shape.size)
            with f.table_rows(image, y, x, channel, first, last, 4) as row:
                f.write([b.fadd(t, g) for t, g in zip(f.read(row, 4), grad, strict=True)], row, 4)
    return str(f.module)
