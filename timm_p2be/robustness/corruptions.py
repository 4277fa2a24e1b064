"""The common corruptions of CIFAR-C and ImageNet-C, seeded per image.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261). Operations and parameters are those of hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py
and make_imagenet_c.py, which fix no seed: images made here are in the style of the published ones, not equal to them.
Where the two scripts and other implementations differ is in docs/protocol.md.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv

Pixels = NDArray[np.uint8]

SUITES = {'cifar': 32, 'imagenet': 224}  # suite -> side of its images
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(
    image: Pixels, name: str, severity: int, suite: str = 'cifar', seed: int | Sequence[int] = 0
) -> NDArray[np.uint8]:
    """Return a corrupted copy of `image`.

    The random numbers depend on `name`, `severity` and `seed` alone. Pass `seed=(seed, image_index)` when corrupting a
    data set: each image then has noise of its own, and any subset, order or number of workers gives the same pixels.

    Args:
        image: uint8 levels (H, W, 3), 32x32 for the suite 'cifar' and 224x224 for 'imagenet'.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        suite: 'cifar' or 'imagenet'; the two have different parameters.
        seed: a non-negative integer, or a sequence of them.

    Returns:
        uint8 levels of the same shape; as in the original scripts fractions are cut off, not rounded.

    Raises:
        ValueError: an unknown name, severity or suite, a bad seed, or an image of another dtype or shape.

    Example:
        >>> corrupt(np.full((32, 32, 3), 100, np.uint8), 'brightness', severity=5)[0, 0].tolist()
        [176, 176, 176]
    """
    if name not in _TABLE:
        raise ValueError(f'Unknown corruption {name!r}; choose one of {list(CORRUPTIONS)}.')
    if suite not in SUITES:
        raise ValueError(f'Unknown suite {suite!r}; choose one of {list(SUITES)}.')
    if severity not in SEVERITIES or not isinstance(severity, int | np.integer):
        raise ValueError(f'Got severity={severity!r}; it must be one of {list(SEVERITIES)}.')
    _check_image(image, suite)
    corruption = _TABLE[name]
    parameter = (corruption.cifar if suite == 'cifar' else corruption.imagenet)[severity - 1]
    return corruption.function(image, parameter, _generator(name, severity, seed)).astype(np.uint8)


# One function per corruption: (uint8 image, the table's parameter, generator) -> values on the 0..255 scale, which
# `corrupt` cuts down to integers.


def _gaussian_noise(image: Pixels, deviation: float, generator: np.random.Generator) -> NDArray[Any]:
    x = image / 255.0
    return np.clip(x + generator.normal(size=x.shape, scale=deviation), 0, 1) * 255


def _brightness(image: Pixels, shift: float, generator: np.random.Generator) -> NDArray[Any]:
    hsv = rgb2hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    return np.clip(hsv2rgb(hsv), 0, 1) * 255


def _contrast(image: Pixels, factor: float, generator: np.random.Generator) -> NDArray[Any]:
    x = image / 255.0
    means = x.mean(axis=(0, 1), keepdims=True)
    return np.clip((x - means) * factor + means, 0, 1) * 255


def _pixelate(image: Pixels, factor: float, generator: np.random.Generator) -> NDArray[Any]:
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(image: Pixels, quality: int, generator: np.random.Generator) -> NDArray[Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format='JPEG', quality=quality)
    with Image.open(buffer) as reloaded:
        return np.asarray(reloaded)


class _Corruption(NamedTuple):
    function: Callable[[Pixels, Any, np.random.Generator], NDArray[Any]]
    cifar: tuple[Any, ...]  # parameters of severities 1 to 5
    imagenet: tuple[Any, ...]


# In the order of the benchmark. A new corruption is one row here and one function above.
_TABLE = {
    'gaussian_noise': _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    'brightness': _Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    'contrast': _Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    'pixelate': _Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    'jpeg_compression': _Corruption(_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
CORRUPTIONS = tuple(_TABLE)


def _generator(name: str, severity: int, seed: int | Sequence[int]) -> np.random.Generator:
    """Return the generator of one image; a CRC stands for the name, since Python's hash differs between processes."""
    parts = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if not parts or not all(isinstance(part, int | np.integer) and part >= 0 for part in parts):
        raise ValueError(
            f'Got seed={seed!r}; it must be a non-negative integer or a sequence such as (seed, image_index).'
        )
    return np.random.default_rng([zlib.crc32(name.encode()), severity, len(parts), *(int(part) for part in parts)])


def _check_image(image: Pixels, suite: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f'{image.dtype} array of shape {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f'Got an image that is a {got}; corrupt takes uint8 levels of shape (H, W, 3). Use '
            "np.asarray(image.convert('RGB')) for PIL images."
        )
    side = SUITES[suite]
    if image.shape[:2] != (side, side):
        fitting = [name for name, other in SUITES.items() if image.shape[:2] == (other, other)]
        advice = f"Use suite='{fitting[0]}'." if fitting else f'Resize or crop the image to {side}x{side} first.'
        raise ValueError(
            f"Got an image of {image.shape[0]}x{image.shape[1]}; the suite '{suite}' is defined for {side}x{side} (its "
            f'parameters are in pixels of that size). {advice}'
        )
