"""The common corruptions of CIFAR-C and ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261), seeded per image.

Operations and parameters are those of hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py and make_imagenet_c.py,
which fix no seed: images made here are in the style of the published ones, not equal to them. Where the two scripts and
other implementations differ is in docs/protocol.md.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_p2be.robustness.corruptions import blur, digital, noise, weather
from timm_p2be.robustness.corruptions.parameters import PARAMETERS

__all__ = ['CATEGORIES', 'CORRUPTIONS', 'EXTRA_CORRUPTIONS', 'SEVERITIES', 'SUITES', 'corrupt']

SUITES = {'cifar': 32, 'imagenet': 224}  # suite -> side of its images
SEVERITIES = (1, 2, 3, 4, 5)

CATEGORIES = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
CORRUPTIONS = tuple(name for names in CATEGORIES.values() for name in names)  # in the order of the benchmark
EXTRA_CORRUPTIONS = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')  # left for validation by the benchmark

# (uint8 image (H, W, 3), generator, keywords of parameters.py) -> values on the 0..255 scale, fractions included
_FUNCTIONS: dict[str, Callable[..., NDArray[Any]]] = {
    name: next(getattr(module, name) for module in (noise, blur, weather, digital) if hasattr(module, name))
    for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
}


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, suite: str = 'cifar', seed: int | Sequence[int] = 0
) -> NDArray[np.uint8]:
    """Return a corrupted copy of `image`.

    The random numbers depend on `name`, `severity` and `seed` alone. Pass `seed=(seed, image_index)` when corrupting a
    data set: each image then has noise of its own, and any subset, order or number of workers gives the same pixels.
    As in the original scripts fractions are cut off, not rounded.

    Args:
        image: uint8 levels (H, W, 3), 32x32 for the suite 'cifar' and 224x224 for 'imagenet'.
        name: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        suite: 'cifar' or 'imagenet'; the two have different parameters.
        seed: a non-negative integer, or a sequence of them.

    Example:
        >>> corrupt(np.full((32, 32, 3), 100, np.uint8), 'brightness', severity=5)[0, 0].tolist()
        [176, 176, 176]
    """
    if name not in _FUNCTIONS:
        raise ValueError(f'Unknown corruption {name!r}; choose one of {list(_FUNCTIONS)}.')
    if suite not in SUITES:
        raise ValueError(f'Unknown suite {suite!r}; choose one of {list(SUITES)}.')
    if severity not in SEVERITIES or not isinstance(severity, int | np.integer):
        raise ValueError(f'Got severity={severity!r}; it must be one of {list(SEVERITIES)}.')
    shape = (SUITES[suite], SUITES[suite], 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
        got = f'{image.dtype} array of shape {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f'Got an image that is a {got}; the suite {suite!r} has parameters for uint8 levels of shape {shape}. '
            "Resize or crop it, take another suite, or np.asarray(image.convert('RGB')) of a PIL image."
        )
    column = list(SUITES).index(suite)
    parameters = {keyword: values[column][severity - 1] for keyword, values in PARAMETERS[name].items()}
    return _FUNCTIONS[name](image, _generator(name, severity, seed), **parameters).astype(np.uint8)


def _generator(name: str, severity: int, seed: int | Sequence[int]) -> np.random.Generator:
    """Return the generator of one image; a CRC stands for the name, since Python's hash differs between processes."""
    parts = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if not parts or not all(isinstance(part, int | np.integer) and part >= 0 for part in parts):
        raise ValueError(
            f'Got seed={seed!r}; it must be a non-negative integer or a sequence such as (seed, image_index).'
        )
    return np.random.default_rng([zlib.crc32(name.encode()), severity, len(parts), *(int(part) for part in parts)])
