"""AugMix of a batch by torch operations against the same images one by one in numpy and PIL, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_operations import IMAGES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from timm_p2be.data import AugMix, zero_padded_crop
from timm_p2be.data.augmix import mix
from timm_p2be.data.batch_augmix import _BY_TABLE, _numbers, affine, crop_matrices, mix_batch, to_device
from timm_p2be.data.operations import OPERATIONS, Pixels

CUDA = pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device'))
on_devices = pytest.mark.parametrize('device', ['cpu', CUDA])


@pytest.fixture(autouse=True)
def _restore_torch_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def to_batch(images: list[Pixels]) -> Tensor:
    planes = [image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in images]
    return torch.from_numpy(np.stack(planes))


def photographs(folder: Path, side: int, count: int) -> list[Pixels]:
    from datasets import load_dataset
    from torchvision.transforms.functional import center_crop

    name, column = ('cifar10', 'img') if side == 32 else ('imagenet_sample', 'image')
    rows = load_dataset(str(folder / name), split='test' if side == 32 else 'validation').select(range(count))
    return [np.asarray(center_crop(image.convert('RGB'), [side, side])) for image in rows[column]]


def by_operation(name: str, images: list[Pixels], levels: NDArray[np.float64], device: str) -> None:
    """Compare one operation, both its signs, at a level for each image."""
    which = np.full(len(levels), list(OPERATIONS).index(name))
    for sign in (1.0, -1.0):
        numbers = _numbers(which, levels, np.full(len(levels), sign), *images[0].shape[:2])
        got = _BY_TABLE.get(name, affine)(to_batch(images).to(device), torch.from_numpy(numbers).to(device))
        one_by_one = [OPERATIONS[name](*step, sign < 0) for step in zip(images, levels.tolist(), strict=True)]
        assert torch.equal(got.cpu(), to_batch(one_by_one))


def by_mixture(augment: AugMix, images: list[Pixels], seed: int, device: str) -> None:
    torch.manual_seed(seed)
    got = augment(to_batch(images).to(device))
    drawn = augment.draw_batch(np.random.default_rng(seed), len(images))
    mixtures = [augment.mixture(*one) for one in zip(*drawn, strict=True)]
    assert torch.equal(got.cpu(), to_batch([mix(*one) for one in zip(images, mixtures, strict=True)]))


@on_devices
@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_equal_those_of_single_images(name: str, device: str) -> None:
    generator = np.random.default_rng(0)
    for image in IMAGES.values():
        few = (0.1, 9.99) if image.size > 10000 else (0.33, 0.99, 2.49, 2.51, 9.99, 10, *generator.uniform(0.1, 10, 12))
        by_operation(name, [image] * len(few), np.array(few, dtype=np.float64), device)


@on_devices
@pytest.mark.parametrize('augment', [AugMix(), AugMix(10), AugMix(5, 4, 5), AugMix(1, 1, 1)], ids=repr)
def test_mixtures_equal_those_of_single_images(augment: AugMix, device: str) -> None:
    for seed, shape in enumerate([(32, 32, 3), (20, 47, 3), (17, 23), (1, 1, 3)]):
        generator = np.random.default_rng(seed)
        low, high = generator.integers(0, 100, 24), generator.integers(101, 257, 24)
        images = [generator.integers(*ends, shape, np.uint8) for ends in zip(low, high, strict=True)]
        by_mixture(augment, images, seed, device)


@pytest.mark.slow
@on_devices
@pytest.mark.parametrize(('side', 'count', 'severity'), [(32, 200, 3), (32, 200, 10), (224, 4, 1)])
def test_photographs(p2be_data: Path, side: int, count: int, severity: int, device: str) -> None:
    images = photographs(p2be_data, side, count)
    by_mixture(AugMix(severity), images, severity, device)
    for name in OPERATIONS:
        by_operation(name, images, np.linspace(0.1, severity, count), device)


@on_devices
def test_crops_are_those_of_zero_padded_crop(device: str) -> None:
    """Every flip and window of torchvision's transform, by its own pixels."""
    image = np.random.default_rng(0).integers(1, 256, (6, 9, 3), dtype=np.uint8)
    torch.manual_seed(0)
    crop = zero_padded_crop((6, 9), padding=1)
    theirs = {np.asarray(crop(Image.fromarray(image))).tobytes() for _ in range(300)}
    (matrices,) = to_device([crop_matrices(np.random.default_rng(0), 300, (6, 9), 1, 0.5)], torch.device(device))
    ours = affine(to_batch([image] * 300).to(device), matrices).cpu().permute(0, 2, 3, 1)
    assert {window.numpy().tobytes() for window in ours} == theirs
    assert len(theirs) == 18
    drawn = crop_matrices(np.random.default_rng(1), 5000, (32, 32), 4, 0.3)
    assert np.mean(drawn[:, 0] < 0) == pytest.approx(0.3, abs=0.02)
    assert np.bincount(drawn[:, 5].astype(int) + 4) / 5000 == pytest.approx(np.full(9, 1 / 9), abs=0.02)


def test_a_batch_is_drawn_from_the_distributions_of_single_images() -> None:
    weights, uniforms = AugMix(alpha=2).draw_batch(np.random.default_rng(0), 6000)
    assert (weights.dtype, weights.shape, uniforms.shape) == (np.float32, (6000, 4), (6000, 3, 10))
    assert weights.mean(axis=0) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.01)
    assert weights[:, 0].var() == pytest.approx(1 / 20, rel=0.08)  # Beta(2, 2)
    assert (weights[:, 1] / (1 - weights[:, 0])).var() == pytest.approx(2 / 63, rel=0.08)  # Dirichlet(2, 2, 2)


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@on_devices
def test_the_device_is_never_waited_for(device: str) -> None:
    images = torch.zeros(16, 3, 8, 8, dtype=torch.uint8, device=device)
    groups, drawn = AugMix().prepare_batch(np.random.default_rng(0), 16, (8, 8))
    weights, rows = to_device(drawn, images.device)
    mode = torch.cuda.get_sync_debug_mode() if device == 'cuda' else 0
    with _Names() as names:
        try:
            if device == 'cuda':
                torch.cuda.set_sync_debug_mode('error')
            mix_batch(images, groups, weights, rows)
        finally:
            if device == 'cuda':
                torch.cuda.set_sync_debug_mode(mode)
    assert {'gather', 'index_select', 'index_copy_', 'scatter_add_'} <= {*names.seen}
    waits = {
        '_local_scalar_dense',
        'nonzero',
        'masked_select',
        'lift_fresh',
        'index',
        'index_put_',
        'repeat_interleave',
    }
    assert not waits & {*names.seen}
