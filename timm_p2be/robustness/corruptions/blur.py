"""Blur: defocus, frosted glass, motion, zoom, and the Gaussian of the extra corruptions."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from timm_p2be.extras import require
from timm_p2be.robustness.images import Pixels

cv2 = require('cv2', extra='robustness')
ndimage = require('scipy.ndimage', extra='robustness')


def gaussian_filter(x: NDArray[Any], deviation: float) -> NDArray[Any]:
    """Return `x` smoothed over its first two axes, as skimage.filters.gaussian does: edge repeated, cut at 4 sigma."""
    return ndimage.gaussian_filter(x, (deviation, deviation, 0)[: x.ndim], mode='nearest', truncate=4)


def directed_blur(levels: Pixels, radius: int, deviation: float, angle: float) -> Pixels:
    """Smear an image (H, W) or (H, W, C) to one side, as ImageMagick 6.9.11's motion blur does.

    Half a Gaussian of 2 * radius + 1 taps is laid along a line; each tap reads the pixel nearest to its place, or the
    nearest one on the edge. At an angle of 0 degrees a bright dot leaves a trace to its left, at 90 one above.
    """
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * deviation**2))
    weights /= weights.sum()
    direction = math.radians(angle)
    downs = np.ceil(taps * math.sin(direction) - 0.5).astype(int).tolist()
    rights = np.ceil(taps * math.cos(direction) - 0.5).astype(int).tolist()
    height, width = levels.shape[:2]
    margin = taps.size
    around = [(margin, margin), (margin, margin), (0, 0)][: levels.ndim]
    padded = np.pad(levels, around, mode='edge').astype(np.float64)
    total = np.zeros(levels.shape)
    for weight, down, right in zip(weights.tolist(), downs, rights, strict=True):
        top, left = margin + down, margin + right
        total += weight * padded[top : top + height, left : left + width]
    return np.floor(total + 0.5 / 257).astype(np.uint8)  # it rounds to 16 bits, where a level is 257, and cuts those


def gaussian_blur(image: Pixels, generator: Generator, *, deviation: float) -> NDArray[Any]:
    """Smooth with a Gaussian."""
    return np.clip(gaussian_filter(image / 255.0, deviation), 0, 1) * 255


@functools.cache
def disk_kernel(radius: float, alias: float) -> NDArray[np.float32]:
    """Return the kernel of an out-of-focus lens: the pixels whose centers lie within `radius`, softened by a Gaussian.

    Disks that touch the kernel's edge sum to a little more than 1, since the Gaussian mirrors there.
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    across = np.arange(-reach, reach + 1)
    disk = (across**2 + across[:, None] ** 2 <= radius**2).astype(np.float32)
    kernel = np.asarray(cv2.GaussianBlur(disk / disk.sum(), (taps, taps), sigmaX=alias))
    kernel.flags.writeable = False
    return kernel


def defocus_blur(image: Pixels, generator: Generator, *, radius: float, alias: float) -> NDArray[Any]:
    """Convolve every channel with `disk_kernel`, edges mirrored."""
    return np.clip(cv2.filter2D(image / 255.0, -1, disk_kernel(radius, alias)), 0, 1) * 255


def glass_blur(image: Pixels, generator: Generator, *, deviation: float, reach: int, rounds: int) -> NDArray[Any]:
    """Smooth, scatter pixels locally, smooth again.

    The scripts' swap of a pixel with a neighbor at -reach..reach-1, two NumPy views, copies the neighbor; so does this.
    """
    levels = (gaussian_filter(image / 255.0, deviation) * 255).astype(np.uint8)
    height, width = levels.shape[:2]
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    targets = (rows[:, None] * width + columns).ravel()
    origin = list(range(height * width))  # where each pixel comes from; a list, since the copies depend on each other
    for _ in range(rounds):
        rights, downs = generator.integers(-reach, reach, (targets.size, 2)).T
        sources = targets + downs * width + rights
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
            origin[target] = origin[source]
    scattered = levels.reshape(-1, levels.shape[2])[origin].reshape(levels.shape)
    return np.clip(gaussian_filter(scattered / 255.0, deviation), 0, 1) * 255


def motion_blur(image: Pixels, generator: Generator, *, radius: int, deviation: float) -> NDArray[Any]:
    """Smear to one side, at up to 45 degrees from horizontal."""
    return directed_blur(image, radius, deviation, angle=generator.uniform(-45, 45))


def magnified(x: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Return the center of a square image (S, S, C), magnified by linear interpolation as scipy.ndimage.zoom does."""
    left, weight = _interpolation(len(x), factor)
    down, across = weight[:, None, None], weight[:, None]
    upper, lower = x[left] * (1 - down), x[left + 1] * down
    return (
        upper[:, left] * (1 - across) + upper[:, left + 1] * across
        + lower[:, left] * (1 - across) + lower[:, left + 1] * across
    )  # fmt: skip


@functools.cache
def _interpolation(side: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return, for each pixel of a magnified axis, its left source pixel and the weight of the next one."""
    crop = math.ceil(side / factor)
    zoomed = round(crop * factor)
    trim = (zoomed - side) // 2
    places = np.arange(trim, trim + side) * ((crop - 1) / (zoomed - 1))
    left = np.minimum(np.floor(places).astype(np.intp), crop - 2)
    return left + (side - crop) // 2, places - left


def zoom_blur(image: Pixels, generator: Generator, *, factors: Sequence[float]) -> NDArray[Any]:
    """Average the image with its magnifications by `factors`, of which the first is 1."""
    x = (image / 255.0).astype(np.float32)
    exact = x.astype(np.float64)
    total = np.zeros_like(x)
    for factor in factors:
        total += magnified(exact, factor).astype(np.float32)
    return np.clip((x + total) / np.float32(len(factors) + 1), 0, 1) * 255
