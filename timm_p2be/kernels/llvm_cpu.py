"""The lookup convolution on the CPU, in loops that LLVM compiled for it.

Levels are padded with a 257th level whose table rows are zeros, so that the loops know no border.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_p2be.kernels import llvm_ir, llvm_jit

_CACHE_BYTES = 2**20  # of table rows between which a pass or unit alternates: a core's L2 cache
_TILE_BYTES = 2**18  # of sums that wait between passes


@dataclass(frozen=True)
class _Window:
    """The padded levels, and where the kernel's window lies in them for every output pixel.

    Attributes:
        levels: (B, C, H, W) int16, with 256 around them; distances below are in its elements.
        rows: of the feature map.
        columns: of the feature map.
        row_stride: from an output row to the next.
        column_stride: from an output column to the next.
        offsets: (taps,) int64, from the start of a window to each tap: kernel row, colour, kernel column.
    """

    levels: Tensor
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    offsets: Tensor


def _slide(
    levels: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> _Window:
    """Return the window of a (height, width) kernel over uint8 levels padded by (left, right, top, bottom)."""
    padded = F.pad(levels.to(torch.int16), list(padding), value=llvm_ir.LEVELS - 1).contiguous()
    _, chans, height, width = padded.shape
    down, right = torch.arange(kernel[0]) * dilation[0], torch.arange(kernel[1]) * dilation[1]
    colour = torch.arange(chans)
    offsets = (down[:, None, None] * width + colour[:, None] * height * width + right).flatten()
    rows = (height - int(down[-1]) - 1) // stride[0] + 1
    columns = (width - int(right[-1]) - 1) // stride[1] + 1
    return _Window(padded, rows, columns, stride[0] * width, stride[1], offsets)


class _Arguments(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in llvm_ir.ARGUMENTS)


class Kernels:
    """Forward and backward for feature maps of one number of channels and one dtype.

    Args:
        channels: of the feature map.
        dtype: of feature map and table, float32 or bfloat16.

    Raises:
        timm_p2be.kernels.llvm_jit.CompilationError: they do not compile.
    """

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        self.channels = channels
        self.dtype = dtype
        self.shape = llvm_ir.shape_for(channels, dtype.itemsize)
        self._forward = llvm_jit.compile_function(llvm_ir.forward, self.shape)
        self._backward = llvm_jit.compile_function(llvm_ir.backward, self.shape)

    def gather_sum(
        self,
        levels: Tensor,
        table: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Tensor:
        """Return the sums of the table rows that the levels under each window point to.

        Args:
            levels: (B, C, H, W) uint8.
            table: (kh, C, kw, 257, channels) of the kernels' dtype, contiguous; row 256 of a tap is that of padding.
            stride: (height, width).
            padding: (left, right, top, bottom).
            dilation: (height, width).

        Returns:
            (B, rows, columns, channels) of the kernels' dtype.
        """
        window = _slide(levels, table.shape[0:3:2], stride, padding, dilation)
        taps, threads = len(window.offsets), llvm_jit.num_threads()
        at_once = self._taps_at_once(taps, table.element_size())
        row_bytes = window.columns * self.shape.block * 4
        tile_rows = min(window.rows, max(1, _TILE_BYTES // row_bytes))
        tiles = -(-window.rows // tile_rows)
        features = torch.empty(len(levels), window.rows, window.columns, self.channels, dtype=self.dtype)
        scratch_bytes = 0 if at_once == taps else tile_rows * row_bytes
        scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8)
        self._run(
            self._forward,
            threads,
            window,
            units=len(levels) * tiles * self.channels // self.shape.block,
            features=features.data_ptr(),
            table=table.data_ptr(),
            scratch=scratch.data_ptr(),
            scratch_bytes=scratch_bytes,
            taps_at_once=at_once,
            tile_rows=tile_rows,
        )
        return features

    def scatter_add(
        self,
        levels: Tensor,
        grad: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Tensor:
        """Return the gradient of `gather_sum`'s table, (kh, C, kw, 257, channels) float32.

        Args:
            levels: as in `gather_sum`, like the last three.
            grad: (B, rows, columns, channels) gradient of the sums, of the kernels' dtype, contiguous.
            kernel: (kh, kw).
            stride: (height, width).
            padding: (left, right, top, bottom).
            dilation: (height, width).
        """
        window = _slide(levels, kernel, stride, padding, dilation)
        taps, threads = len(window.offsets), llvm_jit.num_threads()
        groups = -(-taps // self._taps_at_once(taps, 4))
        groups = min(taps, -(-groups // threads) * threads)  # as many for every thread
        at_once = -(-taps // groups)
        table = torch.zeros(kernel[0], levels.shape[1], kernel[1], llvm_ir.LEVELS, self.channels)
        self._run(
            self._backward,
            threads,
            window,
            units=-(-taps // at_once) * self.channels // self.shape.block,
            features=grad.data_ptr(),
            table=table.data_ptr(),
            taps_at_once=at_once,
        )
        return table

    def _taps_at_once(self, taps: int, size: int) -> int:
        return min(taps, max(1, _CACHE_BYTES // (llvm_ir.LEVELS * self.shape.block * size)))

    def _run(self, function: llvm_jit.Function, threads: int, window: _Window, **arguments: int) -> None:
        """Call a compiled function on `threads` threads."""
        struct = _Arguments(
            images=len(window.levels),
            rows=window.rows,
            columns=window.columns,
            channels=self.channels,
            index=window.levels.data_ptr(),
            offsets=window.offsets.data_ptr(),
            taps=len(window.offsets),
            image_stride=math.prod(window.levels.shape[1:]),
            row_stride=window.row_stride,
            column_stride=window.column_stride,
            **arguments,
        )
        function.run(ctypes.addressof(struct), threads)
