"""The lookup convolution on a GPU, in kernels that Triton compiles for it, or on a CPU in Triton's interpreter.

Nothing here waits for the device or copies to it, so the operators can be captured in a CUDA graph.
"""

import functools
import math

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from timm_p2be.lookup import triton_kernels
from timm_p2be.lookup.window import Window, slide

OLDEST = (8, 0)  # compute capability: bfloat16 and TF32 products

CHUNK = 4096  # pixels sorted together, at most 4096: their places are 12 bits of a key
PRECISION = 'tf32x3'  # of float32 products: 22 of 24 bits; a product of narrower numbers is exact
LARGEST_TABLE = 2**25  # bytes of rows that are looked up: beyond an L2 cache, codes are multiplied instead
_PROGRAMS = 2**12  # of the backward pass, about, whatever the device: the order of sums must not depend on it
_TABLE_BYTES = 2**28  # of float32 table gradient that exists at once


class Kernels:
    """Forward and backward for feature maps of one number of channels; as `llvm_cpu.Kernels`, but for all dtypes.

    Sums are taken in float32, in an order that depends on the shapes alone.
    """

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        self.channels = channels
        self.dtype = dtype
        self.block = min(64, max(16, triton.next_power_of_2(channels)))  # products have 16 columns at least
        self.pixels_at_once = 2048 // self.block
        self.at_once = 128 // dtype.itemsize  # bits, or pixels whose gradients are added, in one product
        self.product_block = min(256 // dtype.itemsize, max(16, triton.next_power_of_2(channels)))

    def parts(self, taps: int) -> list[slice]:
        """Return the channels in parts whose float32 tables are of bounded size: one part but for patch embeddings."""
        step = max(1, _TABLE_BYTES // (taps * 256 * self.block * 4)) * self.block
        return [slice(first, first + step) for first in range(0, self.channels, step)]

    def convolve(self, window: Window, codes: Tensor, weight: Tensor, features: Tensor, latent: bool) -> None:
        """Write to `features` the convolution of the planes of (256, M) codes with `weight` (O, M C, kh, kw).

        Codes may be `latent`: their bits are whether they are at least 0.
        """
        taps, chans = window.taps, window.pixels.shape[1]
        if taps * 257 * self.channels * self.dtype.itemsize > LARGEST_TABLE:
            bits = (codes >= 0 if latent else codes).to(self.dtype)
            self._code_product(window, F.pad(bits, (0, 0, 0, 1)), weight, features)
            return
        table = codes.new_empty(window.kernel[0], chans, window.kernel[1], 257, self.channels, dtype=self.dtype)
        with torch.cuda.device_of(table):
            triton_kernels.code_table[taps, triton.cdiv(257, 32), triton.cdiv(self.channels, self.block)](
                codes.contiguous(), weight, table, chans, *weight.stride(), window.kernel[1], codes.shape[1],
                self.channels, 32, 32, self.block, latent,
            )  # fmt: skip
        self.gather_sum(window, table, features)

    def through_sign(self, grad: Tensor, latents: Tensor) -> Tensor:
        """Return the gradient of latents for that of their codes (Eq. 5 and 6 of the paper)."""
        found = torch.empty_like(latents)
        with torch.cuda.device_of(grad):
            triton_kernels.through_sign[(triton.cdiv(found.numel(), 1024),)](
                grad.contiguous(), latents.contiguous(), found, found.numel(), 1024
            )
        return found

    def smoothness(self, weight: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
        """Return `timm_p2be.losses.smoothness_loss` of a float32 table, and its gradient."""
        rows, bits = weight.shape
        angles, gradient = weight.new_empty(rows - 1), torch.empty(rows, bits, device=weight.device)
        with torch.cuda.device_of(weight):
            triton_kernels.smoothness[(rows,)](
                weight.contiguous(), angles, gradient, rows, bits, 1 / (rows - 1) if mean else 1.0,
                triton.next_power_of_2(bits),
            )  # fmt: skip
        return angles.sum(), gradient

    def _code_product(self, window: Window, codes: Tensor, weight: Tensor, features: Tensor) -> None:
        pixels, bits, block = features.shape[:3].numel(), codes.shape[1], self.product_block
        by_tap = weight.to(self.dtype).unflatten(1, (bits, -1)).permute(3, 2, 4, 1, 0).contiguous()
        with torch.cuda.device_of(features):
            triton_kernels.code_product[triton.cdiv(pixels, 128), triton.cdiv(self.channels, block)](
                window.pixels, codes, by_tap, features, *self._places(window, pixels), *window.kernel, bits,
                self.channels, 128, self.at_once, block, PRECISION, is_interpreted(), num_warps=8,
            )  # fmt: skip

    def _places(self, window: Window, pixels: int) -> tuple[int, ...]:
        """Return the arguments of a kernel that say which level each of so many output pixels reads."""
        borders = window.padding[2], window.padding[0]
        outputs = window.rows, window.columns
        strides = *window.pixels.stride(), *window.stride
        return self.channels, pixels, *window.pixels.shape[1:], *outputs, *strides, *borders, *window.dilation

    def gather_sum(self, window: Window, table: Tensor, features: Tensor) -> None:
        """Write to `features` the sums of the rows of `table` (kh, C, kw, 257, channels) under each window."""
        pixels, channels = features.shape[:3].numel(), features.shape[3]
        with torch.cuda.device_of(features):
            triton_kernels.gather_sum[triton.cdiv(pixels, self.pixels_at_once), triton.cdiv(channels, self.block)](
                window.pixels, table, features, *self._places(window, pixels), *window.kernel, channels,
                self.pixels_at_once, self.block,
            )  # fmt: skip

    def at_a_time(self, width: int, stride: int, dilation: int = 1) -> dict[str, int]:
        """Return what `bucket_sum` takes at once: BT taps of a row, STEP apart so that they read one phase; K keys."""
        step = min(stride // math.gcd(stride, dilation), width)
        taps = min(triton.next_power_of_2(triton.cdiv(width, step)), 256 // self.block)
        return {'STEP': step, 'BT': taps, 'K': min(self.at_once, 2**14 // (taps * self.block * self.dtype.itemsize))}

    def scatter_add(self, window: Window, grad: Tensor) -> Tensor:
        """Return the gradient of `gather_sum`'s table, (taps, 256, channels) float32."""
        (down, right), channels, chans = window.stride, grad.shape[3], window.pixels.shape[1]
        (up, below), (back, after) = _margins(window, 0), _margins(window, 1)
        grad = F.pad(grad, (0, 0, back, after, up, below)).contiguous()
        grid = grad.shape[1:3]
        chunks = triton.cdiv(grad.shape[:3].numel(), CHUNK)
        sizes = self.at_a_time(window.kernel[1], right, window.dilation[1])
        rows = window.kernel[0] * chans * sizes['STEP']
        blocks = triton.cdiv(channels, self.block) * triton.cdiv(window.kernel[1], sizes['STEP'] * sizes['BT'])
        per_group = triton.cdiv(chunks, max(1, _PROGRAMS // (rows * 16 * blocks)))
        groups = triton.cdiv(chunks, max(1, per_group))
        lists = chans * down * right * chunks
        keys = torch.empty(lists, CHUNK, dtype=torch.int16, device=grad.device)
        starts = torch.empty(lists, 17, dtype=torch.int32, device=grad.device)
        partial = torch.empty(groups, 256, window.taps, channels, dtype=torch.float32, device=grad.device)
        with torch.cuda.device_of(grad):
            triton_kernels.partition[(lists,)](
                window.pixels, keys, starts, *window.pixels.shape, *window.pixels.stride(), *window.stride, *grid,
                chunks, CHUNK, num_warps=8,
            )  # fmt: skip
            triton_kernels.bucket_sum[rows, 16 * groups, blocks](
                keys, starts, grad, partial, chans, *window.stride, window.padding[2], window.padding[0],
                *window.dilation, up, back, grid[1], chunks, per_group, *window.kernel, OUT=channels,
                CHUNK=CHUNK, BO=self.block, PRECISION=PRECISION, INTERPRETED=is_interpreted(), **sizes,
            )  # fmt: skip
        return partial.sum(0).transpose(0, 1)


def _margins(window: Window, axis: int) -> tuple[int, int]:
    """Return how many rows (or columns) before and after the feature map's the taps would read for the levels'."""
    stride, padding = window.stride[axis], window.padding[2 - 2 * axis]
    phase, outputs = triton.cdiv(window.pixels.shape[2 + axis], stride), (window.rows, window.columns)[axis]
    last = (window.kernel[axis] - 1) * window.dilation[axis] - padding
    return max(0, last // stride), max(0, phase - outputs - -padding // stride)


def is_interpreted() -> bool:
    """Return whether Triton was told (TRITON_INTERPRET=1) to run its kernels in Python when they were defined."""
    return not isinstance(triton_kernels.gather_sum, triton.JITFunction)


@functools.cache
def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and launch the kernels for one pixel; raise what goes wrong, whatever it is."""
    if device.type == 'cuda' and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        raise RuntimeError(f'compute capability {found[0]}.{found[1]}; {OLDEST[0]}.{OLDEST[1]} is needed')
    kernels = Kernels(16, dtype)
    window = slide(torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=device), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    features = torch.zeros(1, 1, 1, 16, dtype=dtype, device=device)
    kernels.convolve(window, torch.zeros(256, 1, device=device), features.reshape(16, 1, 1, 1), features, True)
    kernels.scatter_add(window, features)


def description(device: torch.device) -> str:
    """Return what runs the kernels, for a log line."""
    where = "Triton's interpreter" if is_interpreted() else torch.cuda.get_device_name(device)
    return f'Triton {triton.__version__} ({where})'
