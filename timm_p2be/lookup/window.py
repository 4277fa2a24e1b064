"""Where a convolution's kernel lies over an image of levels, for backends that look rows up.

What lies outside the image has a 257th level, whose table rows hold no code, so borders are no case of their own.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING_LEVEL = 256
LOADED_IN = os.getpid()  # a process with another number was forked off, without the threads of this one


@dataclass(frozen=True)
class Window:
    """Levels, and where the kernel's window lies in them for every output pixel."""

    pixels: Tensor  # (B, C, H, W) uint8, of any strides
    kernel: Sequence[int]  # height, width; so stride and dilation
    stride: Sequence[int]
    padding: Sequence[int]  # left, right, top, bottom
    dilation: Sequence[int]
    rows: int  # of the feature map
    columns: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.pixels.shape[1] * self.kernel[1]

    @cached_property
    def levels(self) -> Tensor:
        """The padded levels, (B, C, H, W) int16, with 256 around them; distances below are in its elements."""
        return F.pad(self.pixels.to(torch.int16), list(self.padding), value=PADDING_LEVEL).contiguous()

    @property
    def row_stride(self) -> int:
        """From an output row to the next."""
        return self.stride[0] * self.levels.shape[3]

    @property
    def column_stride(self) -> int:
        return self.stride[1]

    @cached_property
    def offsets(self) -> Tensor:
        """(taps,) int64, from the start of a window to each tap: kernel row, color, kernel column."""
        _, chans, height, width = self.levels.shape
        down, color, right = (torch.arange(n, device='cpu') for n in (self.kernel[0], chans, self.kernel[1]))
        down, color, right = down * self.dilation[0] * width, color * height * width, right * self.dilation[1]
        return (down[:, None, None] + color[:, None] + right).flatten()


def output_size(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Return rows and columns of the feature map."""
    left, right, top, bottom = padding
    rows = (shape[2] + top + bottom - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    columns = (shape[3] + left + right - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
    return rows, columns


def slide(
    levels: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Window:
    """Return the window of a (height, width) kernel over uint8 levels padded by (left, right, top, bottom)."""
    return Window(
        levels, kernel, stride, padding, dilation, *output_size(levels.shape, kernel, stride, padding, dilation)
    )
