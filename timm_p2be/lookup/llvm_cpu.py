"""The lookup convolution on the CPU, in loops that LLVM compiled for it."""

import ctypes
import math

import torch
from torch import Tensor

from timm_p2be.lookup import llvm_ir, llvm_jit
from timm_p2be.lookup.window import Window

_CACHE_BYTES = 2**20  # of table rows between which a pass or unit alternates: a core's L2 cache
_TILE_BYTES = 2**18  # of sums that wait between passes
_TABLE_BYTES = 2**26  # of table that exists at once, unless one block of channels takes more


class _Arguments(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in llvm_ir.ARGUMENTS)


class Kernels:
    """Forward and backward for feature maps (and tables) of one number of channels and one dtype, float32 or bfloat16.

    `features` and `grad` are (B, rows, columns, channels), all channels of a contiguous tensor or a part.
    """

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        self.channels = channels
        self.dtype = dtype
        self.shape = llvm_ir.shape_for(channels, dtype.itemsize)
        self._forward = llvm_jit.compile_function(llvm_ir.forward, self.shape)
        self._backward = llvm_jit.compile_function(llvm_ir.backward, self.shape)

    def parts(self, taps: int) -> list[slice]:
        """Return the channels in parts whose float32 tables are of bounded size: one part but for patch embeddings."""
        blocks = max(1, _TABLE_BYTES // (taps * llvm_ir.LEVELS * self.shape.block * 4))
        step = blocks * self.shape.block
        return [slice(first, first + step) for first in range(0, self.channels, step)]

    def gather_sum(self, window: Window, table: Tensor, features: Tensor) -> None:
        """Write to `features` the sums of the rows of `table` (kh, C, kw, 257, channels) under each window."""
        taps, threads = len(window.offsets), llvm_jit.num_threads()
        assert table.shape[:4].numel() == taps * llvm_ir.LEVELS
        assert table.is_contiguous()
        assert table.dtype == self.dtype
        at_once = self._taps_at_once(taps, table.element_size())
        row_bytes = window.columns * self.shape.block * 4
        tile_rows = min(window.rows, max(1, _TILE_BYTES // row_bytes))
        tiles = -(-window.rows // tile_rows)
        scratch_bytes = 0 if at_once == taps else tile_rows * row_bytes
        scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device='cpu')
        self._run(
            self._forward,
            threads,
            window,
            features,
            table,
            units=len(features) * tiles * features.shape[3] // self.shape.block,
            scratch=scratch.data_ptr(),
            scratch_bytes=scratch_bytes,
            taps_at_once=at_once,
            tile_rows=tile_rows,
        )

    def scatter_add(self, window: Window, grad: Tensor) -> Tensor:
        """Return the gradient of `gather_sum`'s table, (taps, 257, channels) float32."""
        taps, threads = len(window.offsets), llvm_jit.num_threads()
        groups = -(-taps // self._taps_at_once(taps, 4))
        groups = min(taps, -(-groups // threads) * threads)  # as many for every thread
        at_once = -(-taps // groups)
        table = torch.zeros(taps, llvm_ir.LEVELS, grad.shape[3], dtype=torch.float32, device='cpu')
        units = -(-taps // at_once) * grad.shape[3] // self.shape.block
        self._run(self._backward, threads, window, grad, table, units=units, taps_at_once=at_once)
        return table

    def _taps_at_once(self, taps: int, size: int) -> int:
        return min(taps, max(1, _CACHE_BYTES // (llvm_ir.LEVELS * self.shape.block * size)))

    def _run(
        self,
        function: llvm_jit.Function,
        threads: int,
        window: Window,
        features: Tensor,
        table: Tensor,
        **arguments: int,
    ) -> None:
        row = window.columns * self.channels
        assert features.dtype == self.dtype
        assert features.shape == (len(window.levels), window.rows, window.columns, table.shape[-1])
        strides = zip(features.shape, features.stride(), (window.rows * row, row, self.channels, 1), strict=True)
        assert not features.numel() or all(found == expected for size, found, expected in strides if size > 1)
        struct = _Arguments(
            images=len(window.levels),
            rows=window.rows,
            columns=window.columns,
            channels=features.shape[3],
            pitch=self.channels,
            features=features.data_ptr(),
            table=table.data_ptr(),
            index=window.levels.data_ptr(),
            offsets=window.offsets.data_ptr(),
            taps=len(window.offsets),
            image_stride=math.prod(window.levels.shape[1:]),
            row_stride=window.row_stride,
            column_stride=window.column_stride,
            **arguments,
        )
        function.run(ctypes.addressof(struct), threads)
