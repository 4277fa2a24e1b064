"""AugMix on a batch of images at once, by plain torch operations on any device that has float64.

Same pixels as `operations`, hence as PIL, for the same draws. PIL's bilinear filter computes in double precision and
truncates (src/libImaging/Geometry.c), so every product and sum below is an operation of its own, which no compiler may
fuse. What is drawn comes from the host, as do the numbers of images in each group: nothing waits for the device.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_p2be.data.operations import MAX_LEVEL, MIN_LEVEL, OPERATIONS, RANDOM_DEPTH

Floats = NDArray[np.float64]
Groups = list[tuple[str, int]]  # an operation, and how many images come next that it is for

_STEEPEST = 30  # degrees
_NAMES = tuple(OPERATIONS)
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# cos and sin of PIL's rotation, for -30 to 30 degrees
_TURNS = np.array(
    [
        (round(math.cos(angle), 15), round(math.sin(angle), 15))
        for angle in (-math.radians(degrees % 360.0) for degrees in range(-_STEEPEST, _STEEPEST + 1))
    ]
)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Return uint8 images (N, C, H, W) read at PIL's affine coordinates, bilinearly, with black outside.

    Row (a, b, c, d, e, f) of `matrices` (N, 6), float64, has output (x, y) read input (ax + by + c, dx + ey + f).
    """
    count, channels, height, width = images.shape
    a, b, c, d, e, f = matrices.view(count, 6, 1, 1).unbind(1)
    x = torch.arange(0.5, width, dtype=torch.float64, device=images.device)
    y = torch.arange(0.5, height, dtype=torch.float64, device=images.device)[:, None]
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    across, down = across - 0.5, down - 0.5
    left, top = across.floor(), down.floor()
    first_second = torch.arange(2, device=images.device).view(2, 1, 1)
    columns = (left[:, None] + first_second).clamp_(0, width - 1).long()
    rows = (top[:, None] + first_second).clamp_(0, height - 1).long().mul_(width)
    corners = (rows[:, :, None] + columns[:, None]).view(count, 1, -1).expand(-1, channels, -1)
    values = images.flatten(2).gather(2, corners).double().view(count, channels, 2, 2, height, width)
    near, far = values.unbind(3)
    upper, lower = (far - near).mul_((across - left)[:, None, None]).add_(near).unbind(2)
    return (lower - upper).mul_((down - top)[:, None]).add_(upper).to(torch.uint8).mul_(inside[:, None])


def _map_levels(images: Tensor, tables: Tensor) -> Tensor:
    """Map the levels of each channel through its row of `tables` (N, C, 256), uint8."""
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3)).double()[..., None], images.amax((2, 3)).double()[..., None]
    flat = high <= low
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = levels[255] / (high - low).masked_fill_(flat, 255.0)  # torch takes 255.0 / x for 255 (1 / x)
    offset = -low.masked_fill_(flat, 0.0) * scale
    return _map_levels(images, (levels * scale + offset).clamp_(0, 255).to(torch.uint8))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    levels = images.flatten(2).long()
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    step = (levels.shape[2] - counts.gather(2, levels.amax(2, keepdim=True))) // 255
    below = counts.cumsum(2) - counts
    tables = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    unchanged = torch.arange(256, device=images.device)
    return _map_levels(images, torch.where(step == 0, unchanged, tables).to(torch.uint8))


def _posterize(images: Tensor, masks: Tensor) -> Tensor:
    return images & masks[:, 0].to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    return torch.where(images >= thresholds[:, 0].view(-1, 1, 1, 1), 255 - images, images)


# name -> the same operation on images (N, C, H, W) and six numbers for each; the other five are all `affine`
_BY_TABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'autocontrast': _autocontrast,
    'equalize': _equalize,
    'posterize': _posterize,
    'solarize': _solarize,
}
_GROUPS = (*_BY_TABLE, 'affine')
_GROUP_OF = np.array([_GROUPS.index(name if name in _BY_TABLE else 'affine') for name in _NAMES])


def _numbers(which: NDArray[np.int64], levels: Floats, signs: Floats, height: int, width: int) -> Floats:
    """Return the six numbers of each step: a matrix, or what posterize and solarize need in the first place."""
    numbers = np.tile(_IDENTITY, (len(which), 1))
    shears = levels * 0.3 / MAX_LEVEL * signs
    for name, column, values in (
        ('posterize', 0, 256 - 2 ** (4 + np.trunc(levels * 4 / MAX_LEVEL))),
        ('solarize', 0, 256 - np.trunc(levels * 256 / MAX_LEVEL)),
        ('shear_x', 1, shears),
        ('shear_y', 3, shears),
        ('translate_x', 2, np.trunc(levels * (width / 3) / MAX_LEVEL) * signs),
        ('translate_y', 5, np.trunc(levels * (height / 3) / MAX_LEVEL) * signs),
    ):
        chosen = which == _NAMES.index(name)
        numbers[chosen, column] = values[chosen]
    chosen = which == _NAMES.index('rotate')
    cos, sin = _TURNS[(np.trunc(levels * 30 / MAX_LEVEL) * signs)[chosen].astype(np.int64) + _STEEPEST].T
    x, y = width / 2, height / 2
    numbers[chosen] = np.stack([cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y], axis=1)
    return numbers


def plan(uniforms: Floats, severity: float, random_depth: bool, size: Sequence[int]) -> tuple[Groups, Floats]:
    """Return in which order to do what uniforms (N, width, 1 + 3 depth) stand for, on images of (height, width).

    The groups, and for each image in them the row (chain, six numbers); chain i of image n counts as i N + n.
    """
    count, width, _ = uniforms.shape
    steps = uniforms[..., 1:].reshape(count, width, -1, 3)
    depths = 1 + np.trunc(uniforms[..., :1] * RANDOM_DEPTH) if random_depth else steps.shape[2]
    image, chain, place = np.nonzero(np.arange(steps.shape[2]) < np.broadcast_to(depths, steps.shape[:3]))
    which, levels, signs = steps[image, chain, place].T
    which = (which * len(_NAMES)).astype(np.int64)
    levels, signs = MIN_LEVEL + levels * (severity - MIN_LEVEL), np.where(signs < 0.5, -1.0, 1.0)
    order = place * len(_GROUPS) + _GROUP_OF[which]
    rows = np.column_stack([chain * count + image, _numbers(which, levels, signs, *size)])
    counts = np.bincount(order)
    groups = [(_GROUPS[code % len(_GROUPS)], int(counts[code])) for code in np.flatnonzero(counts)]
    return groups, rows[np.argsort(order, kind='stable')]


def mix_batch(images: Tensor, groups: Groups, weights: Tensor, rows: Tensor) -> Tensor:
    """Return the mixtures of uint8 images (N, C, H, W) with their chains: weights (N, 1 + width), rows of `plan`."""
    chains = images.repeat(weights.shape[1] - 1, 1, 1, 1)
    pixels = 1 << 13 if images.device.type == 'cpu' else 1 << 23  # what a cache holds; a bound of memory
    at_once = max(1, pixels // images[0, 0].numel())
    for (name, _), group in zip(groups, rows.split([count for _, count in groups]), strict=True):
        for part in group.split(at_once):
            chosen = part[:, 0].long()
            altered = _BY_TABLE.get(name, affine)(chains.index_select(0, chosen), part[:, 1:])
            chains.index_copy_(0, chosen, altered)
    scales = weights.float()[..., None, None, None].unbind(1)
    total = images * scales[0]
    for chain, scale in zip(chains.split(len(images)), scales[1:], strict=True):
        total += chain * scale
    return total.add_(0.5).to(torch.uint8)


def crop_matrices(generator: np.random.Generator, count: int, width: int, padding: int, hflip: float) -> Floats:
    """Draw `zero_padded_crop` for N images of that width, which keep their size, as matrices for `affine`."""
    flipped = generator.random(count) < hflip
    right, down = generator.integers(-padding, padding + 1, (2, count))
    matrices = np.tile(_IDENTITY, (count, 1))
    matrices[flipped, 0], matrices[:, 2], matrices[:, 5] = -1, np.where(flipped, width - right, right), down
    return matrices


def to_device(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> Iterator[Tensor]:
    """Yield float64 copies of small arrays on a device, which one copy from pinned memory takes there."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float64))
    if device.type == 'cuda':
        flat = flat.pin_memory()
    moved = flat.to(device, non_blocking=True).split([array.size for array in arrays])
    return (part.view(array.shape) for part, array in zip(moved, arrays, strict=True))
