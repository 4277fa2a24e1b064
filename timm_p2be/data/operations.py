"""The nine image operations of AugMix, on uint8 arrays, equal to PIL's to the last bit.

Ranges and rounding are those of google-research/augmix, augmentations.py. Each takes contiguous pixels (H, W, 3) or
(H, W), never written to and returned themselves when nothing changes, a level above 0 and at most 10, and whether the
signed ones go the other way. Most are a fraction of PIL's time on small images (benchmarks/augmix.py).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Operation = Callable[[Pixels, float, bool], Pixels]

MIN_LEVEL = 0.1
MAX_LEVEL = 10  # the level at which an operation reaches the end of its range
RANDOM_DEPTH = 3  # a random depth of a chain is one of 1..3

_LEVELS = np.arange(256, dtype=np.float64)


def _apply_luts(pixels: Pixels, luts: list[Pixels | None]) -> Pixels:
    """Return `pixels` with channel c mapped through `luts[c]`; None leaves a channel as it is."""
    if all(lut is None for lut in luts):
        return pixels
    mapped = pixels.copy()
    source, target = pixels.reshape(-1, len(luts)), mapped.reshape(-1, len(luts))
    for channel, lut in enumerate(luts):
        if lut is not None:
            target[:, channel] = lut.take(source[:, channel])
    return mapped


def _channels(pixels: Pixels) -> int:
    return 1 if pixels.ndim == 2 else pixels.shape[2]


def _autocontrast(pixels: Pixels, level: float, negative: bool) -> Pixels:
    """Stretch every channel to 0..255, in the arithmetic of PIL.ImageOps.autocontrast; the level plays no part."""
    rows = pixels.reshape(len(pixels), -1)  # reducing whole rows first vectorizes, channels are too narrow to
    channels = _channels(pixels)
    lows = rows.min(axis=0).reshape(-1, channels).min(axis=0).tolist()
    highs = rows.max(axis=0).reshape(-1, channels).max(axis=0).tolist()
    luts: list[Pixels | None] = []
    for low, high in zip(lows, highs, strict=True):
        if low >= high or (low, high) == (0, 255):
            luts.append(None)
            continue
        scale = 255.0 / (high - low)
        luts.append((_LEVELS * scale + -low * scale).clip(0, 255).astype(np.uint8))
    return _apply_luts(pixels, luts)


def _equalize(pixels: Pixels, level: float, negative: bool) -> Pixels:
    """Flatten the histogram of every channel, in the arithmetic of PIL.ImageOps.equalize; the level plays no part."""
    flat = pixels.reshape(-1, _channels(pixels))
    luts: list[Pixels | None] = []
    for channel in range(flat.shape[1]):
        values = flat[:, channel]
        counts = np.bincount(values, minlength=256)
        step = (values.size - int(counts[values.max()])) // 255
        if step == 0:
            luts.append(None)
            continue
        below = counts.cumsum() - counts
        luts.append(np.minimum((below + step // 2) // step, 255).astype(np.uint8))
    return _apply_luts(pixels, luts)


def _posterize(pixels: Pixels, level: float, negative: bool) -> Pixels:
    """Keep the 4 - int(0.4 level) leading bits of every value."""
    bits = 4 - int(level * 4 / MAX_LEVEL)
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def _solarize(pixels: Pixels, level: float, negative: bool) -> Pixels:
    """Invert the values from 256 - int(25.6 level) on."""
    threshold = 256 - int(level * 256 / MAX_LEVEL)
    if threshold > 255:
        return pixels
    inverted = np.negative((pixels >= threshold).view(np.uint8))  # 255 where to invert, else 0
    return pixels ^ inverted


def _rotate(pixels: Pixels, level: float, negative: bool) -> Pixels:
    """Rotate by +-int(3 level) degrees."""
    degrees = int(level * 30 / MAX_LEVEL)
    if degrees == 0:
        return pixels
    rotated = Image.fromarray(pixels).rotate(-degrees if negative else degrees, resample=Image.Resampling.BILINEAR)
    return np.asarray(rotated)


def _affine(pixels: Pixels, matrix: tuple[float, float, float, float, float, float]) -> Pixels:
    image = Image.fromarray(pixels)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _shear(pixels: Pixels, level: float, negative: bool, axis: int) -> Pixels:
    """Shear along an axis (0: y, 1: x) by +-0.03 level."""
    amount = level * 0.3 / MAX_LEVEL
    across = -amount if negative else amount
    return _affine(pixels, (1, across, 0, 0, 1, 0) if axis else (1, 0, 0, across, 1, 0))


def _translate(pixels: Pixels, level: float, negative: bool, axis: int) -> Pixels:
    """Move along an axis by +-int(level side / 30) pixels; the bilinear filter is the identity at whole pixels."""
    amount = int(level * (pixels.shape[axis] / 3) / MAX_LEVEL)
    if amount == 0:
        return pixels
    moved = np.zeros_like(pixels)
    source, target = pixels.swapaxes(0, axis), moved.swapaxes(0, axis)  # views
    if negative:
        target[amount:] = source[:-amount]
    else:
        target[:-amount] = source[amount:]
    return moved


OPERATIONS: dict[str, Operation] = {
    'autocontrast': _autocontrast,
    'equalize': _equalize,
    'posterize': _posterize,
    'rotate': _rotate,
    'solarize': _solarize,
    'shear_x': partial(_shear, axis=1),
    'shear_y': partial(_shear, axis=0),
    'translate_x': partial(_translate, axis=1),
    'translate_y': partial(_translate, axis=0),
}
