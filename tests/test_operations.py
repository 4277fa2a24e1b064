"""Every operation of AugMix against PIL, pixel for pixel, and its range against docs/protocol.md."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from timm_p2be.data.batch_augmix import _BY_TABLE, _numbers, affine
from timm_p2be.data.operations import OPERATIONS, Pixels

on_devices = pytest.mark.parametrize('device', ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu'])


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


def to_batch(images: Sequence[Pixels]) -> Tensor:
    """Return images as a tensor (N, C, H, W)."""
    return torch.from_numpy(np.stack([np.moveaxis(np.atleast_3d(image), 2, 0) for image in images]))


def check(name: str, images: Sequence[Pixels], levels: Sequence[float], device: str) -> None:
    """Compare an operation with PIL, each image at its level: one by one and as a batch, both signs."""
    which = np.full(len(levels), list(OPERATIONS).index(name))
    for sign in (1, -1):
        steps = list(zip(images, levels, strict=True))
        expected = [np.asarray(BY_PIL[name](Image.fromarray(image), level, sign)) for image, level in steps]
        for step, pixels in zip(steps, expected, strict=True):
            got = OPERATIONS[name](*step, sign < 0)
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, pixels, err_msg=f'{step[1]} {sign}')
        numbers = _numbers(which, np.array(levels), np.full(len(levels), float(sign)), *images[0].shape[:2])
        batch = to_batch(images).to(device)
        assert torch.equal(
            _BY_TABLE.get(name, affine)(batch, torch.from_numpy(numbers).to(device)).cpu(), to_batch(expected)
        )


@on_devices
@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('name', OPERATIONS)
def test_equals_pil(name: str, kind: str, device: str) -> None:
    levels = [0.1, 0.33, 0.99, 1.7, 2.49, 2.51, 3.0, 6.3, 9.99]
    if kind != 'large':
        levels += np.random.default_rng(0).uniform(0.1, 10, 20).tolist()
    before = IMAGES[kind].copy()
    check(name, [IMAGES[kind]] * len(levels), levels, device)
    np.testing.assert_array_equal(IMAGES[kind], before)  # never in place
