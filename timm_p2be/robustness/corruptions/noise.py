"""Noise: independent random changes of every level."""

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from timm_p2be.extras import require
from timm_p2be.robustness.images import Pixels

random_noise = require('skimage.util', extra='robustness').random_noise


def gaussian_noise(image: Pixels, generator: Generator, *, deviation: float) -> NDArray[Any]:
    """Add N(0, deviation) to x in [0, 1]: electronic noise in low light."""
    x = image / 255.0
    return np.clip(x + generator.normal(size=x.shape, scale=deviation), 0, 1) * 255


def shot_noise(image: Pixels, generator: Generator, *, photons: float) -> NDArray[Any]:
    """Count Poisson(x * photons) for x in [0, 1]; white is `photons` of them on average."""
    return np.clip(generator.poisson(image / 255.0 * photons) / photons, 0, 1) * 255


def impulse_noise(image: Pixels, generator: Generator, *, amount: float) -> NDArray[Any]:
    """Replace a fraction `amount` of the levels, each channel by itself, by 0 or 255 at equal odds."""
    return random_noise(image / 255.0, mode='s&p', rng=generator, amount=amount) * 255


def speckle_noise(image: Pixels, generator: Generator, *, deviation: float) -> NDArray[Any]:
    """Add x * N(0, deviation) to x in [0, 1]: noise in proportion to the level."""
    x = image / 255.0
    return np.clip(x + x * generator.normal(size=x.shape, scale=deviation), 0, 1) * 255
