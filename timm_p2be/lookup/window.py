"""Where a convolution's kernel lies over an image of levels, for backends that look rows up.

Levels are padded with a 257th level, whose table rows hold no code, so that no backend has to know borders.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING_LEVEL = 256
LOADED_IN = os.getpid()  # a process with another number was forked off, without the threads of this one


@dataclass(frozen=True)
class Window:
    """The padded levels, and where the kernel's window lies in them for every output pixel."""

    levels: Tensor  # (B, C, H, W) int16, with 256 around them; distances below are in its elements
    rows: int  # of the feature map
    columns: int
    row_stride: int  # from an output row to the next
    column_stride: int
    offsets: Tensor  # (taps,) int64, from the start of a window to each tap: kernel row, color, kernel column


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
    padded = F.pad(levels.to(torch.int16), list(padding), value=PADDING_LEVEL).contiguous()
    _, chans, height, width = padded.shape
    rows, columns = output_size(levels.shape, kernel, stride, padding, dilation)
    down, color, right = (torch.arange(size, device='cpu') for size in (kernel[0], chans, kernel[1]))
    down, color, right = down * dilation[0] * width, color * height * width, right * dilation[1]
    offsets = (down[:, None, None] + color[:, None] + right).flatten()
    return Window(padded, rows, columns, stride[0] * width, stride[1], offsets)
