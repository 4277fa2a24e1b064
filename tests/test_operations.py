"""Every operation of AugMix against PIL, pixel for pixel, and its range against docs/protocol.md."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from timm_p2be.data.operations import OPERATIONS

Pixels = NDArray[np.uint8]


def _transform(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


# name -> the same operation by PIL alone, from the table in docs/protocol.md; s is +1 or -1
BY_PIL: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    'autocontrast': lambda image, level, s: ImageOps.autocontrast(image),
    'equalize': lambda image, level, s: ImageOps.equalize(image),
    'posterize': lambda image, level, s: ImageOps.posterize(image, 4 - int(level * 0.4)),
    'rotate': lambda image, level, s: image.rotate(s * int(level * 3), resample=Image.Resampling.BILINEAR),
    'solarize': lambda image, level, s: ImageOps.solarize(image, 256 - int(level * 25.6)),
    'shear_x': lambda image, level, s: _transform(image, (1, s * (level * 0.3 / 10), 0, 0, 1, 0)),
    'shear_y': lambda image, level, s: _transform(image, (1, 0, 0, s * (level * 0.3 / 10), 1, 0)),
    'translate_x': lambda image, level, s: _transform(image, (1, 0, s * int(level * image.width / 30), 0, 1, 0)),
    'translate_y': lambda image, level, s: _transform(image, (1, 0, 0, 0, 1, s * int(level * image.height / 30))),
}


def _images() -> dict[str, Pixels]:
    generator = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(32) * 3, np.arange(32) * 2)
    few = generator.choice(np.array([90, 91, 140], np.uint8), (32, 32, 3), p=[0.001, 0.399, 0.6])
    top_heavy = generator.integers(0, 200, (32, 32, 3), dtype=np.uint8)
    top_heavy[5, 7] = 210  # a rare maximum: PIL's equalization overshoots 255 there and is clipped
    return {
        'noise': generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        'low contrast': generator.integers(100, 121, (32, 32, 3), dtype=np.uint8),
        'ramp': np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).astype(np.uint8),
        'few levels': few,
        'rare maximum': top_heavy,
        'constant': np.full((32, 32, 3), 77, np.uint8),
        'wide': generator.integers(0, 256, (20, 47, 3), dtype=np.uint8),
        'large': generator.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        'gray': generator.integers(30, 200, (32, 32), dtype=np.uint8),
        'one pixel': np.array([[[3, 200, 255]]], np.uint8),
    }


IMAGES = _images()


def test_the_nine_operations_are_those_of_the_paper() -> None:
    assert set(OPERATIONS) == set(BY_PIL)


@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('name', OPERATIONS)
def test_equals_pil(name: str, kind: str) -> None:
    pixels = IMAGES[kind]
    before = pixels.copy()
    for level in (0.1, 0.33, 0.99, 1.7, 2.49, 2.51, 3.0, 6.3, 9.99):
        for negative in (False, True):
            expected = BY_PIL[name](Image.fromarray(pixels), level, -1 if negative else 1)
            got = OPERATIONS[name](pixels, level, negative)
            assert got.dtype == np.uint8
            assert got.shape == pixels.shape
            np.testing.assert_array_equal(got, np.asarray(expected), err_msg=f'{level} {negative}')
    np.testing.assert_array_equal(pixels, before)  # never in place
