import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_dataset, create_loader
from timm.data.dataset import IterableImageDataset
from torch.utils.data import get_worker_info

from timm_p2be.data import AugMix, MultiView, zero_padded_crop
from timm_p2be.data.batch_augmix import affine, crop_matrices

pytestmark = [
    pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning'),  # DataLoader's own fork
    pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning'),  # timm's ImageDataset leaves files open
]

COUNT, SIDE = 10, 16


@pytest.fixture(autouse=True)
def _restore_torch_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def _image(index: int) -> Image.Image:
    """Textured image whose top left pixel is its index."""
    pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[0, 0] = index
    return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('images')
    for index in range(COUNT):
        path = root / 'train' / str(index % 2) / f'{index:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        _image(index).save(path)
    return root


class Stream:
    """A reader as timm's iterable datasets use them: yields images, shared out among the workers."""

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from ((_image(index), index % 2) for index in range(start, COUNT, step))


def _keep(image: Image.Image) -> Image.Image:
    return image


def _loader(kind: str, folder: Path, transform: MultiView, workers: int) -> torch.utils.data.DataLoader:
    if kind == 'folder':
        dataset = create_dataset('', root=str(folder), split='train')
    else:
        dataset = IterableImageDataset('', reader=Stream())
    loader = create_loader(
        dataset, (3, SIDE, SIDE), batch_size=5, num_workers=workers, mean=(0, 0, 0), std=(1, 1, 1),
        device=torch.device('cpu'), persistent_workers=False,
    )  # fmt: skip
    loader.dataset.transform = transform
    return loader


@pytest.mark.parametrize('kind', ['folder', 'stream'])
def test_timm_collates_views_first_and_repeats_targets(kind: str, folder: Path) -> None:
    loader = _loader(kind, folder, MultiView(_keep, ImageOps.invert), workers=0)
    seen = []
    for images, targets in loader:
        assert images.shape == (15, 3, SIDE, SIDE)
        views = (images * 255).round().to(torch.uint8).reshape(3, 5, 3, SIDE, SIDE)
        indices = views[0, :, 0, 0, 0].tolist()
        for view, index in zip(views[0], indices, strict=True):
            np.testing.assert_array_equal(view.permute(1, 2, 0), np.asarray(_image(index)))
        assert torch.equal(views[1], 255 - views[0])
        assert torch.equal(views[2], views[1])
        assert targets.tolist() == [index % 2 for index in indices] * 3
        seen += indices
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize('kind', ['folder', 'stream'])
def test_two_workers_repeat_with_the_torch_seed(kind: str, folder: Path) -> None:
    transform = MultiView(zero_padded_crop(SIDE, padding=2), AugMix())

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([images for images, _ in _loader(kind, folder, transform, workers=2)])

    first = epoch(3)
    transform(_image(0))  # what the parent has drawn must not reach its workers
    assert torch.equal(epoch(3), first)
    assert not torch.equal(epoch(4), first)


def test_the_crop_is_shared_and_the_augmentations_are_not() -> None:
    torch.manual_seed(0)
    image = _image(1)
    clean, *others = MultiView(zero_padded_crop(SIDE), _keep)(image)
    for other in others:
        np.testing.assert_array_equal(other, clean)
    clean, one, two = MultiView(_keep, AugMix(severity=10, depth=3))(image)
    np.testing.assert_array_equal(clean.transpose(1, 2, 0), np.asarray(image))
    assert len({clean.tobytes(), one.tobytes(), two.tobytes()}) == 3


def test_views_are_contiguous_uint8_planes() -> None:
    for mode, channels in (('RGB', 3), ('L', 1)):
        views = MultiView(_keep, AugMix(), num_views=2)(Image.new(mode, (8, 5)))
        assert len(views) == 2
        for view in views:
            assert (view.dtype, view.shape) == (np.uint8, (channels, 5, 8))
            assert view.flags.c_contiguous


def test_crop_is_a_window_of_the_black_bordered_image() -> None:
    """Every outcome is one of (2 p + 1)^2 windows of the flipped or unflipped image, and all of them occur."""
    image, padding = _image(3), 1
    windows = {}
    for flip in (False, True):
        padded = np.pad(np.asarray(ImageOps.mirror(image) if flip else image), ((1, 1), (1, 1), (0, 0)))
        for y in range(3):
            for x in range(3):
                windows[padded[y : y + SIDE, x : x + SIDE].tobytes()] = (flip, y, x)
    torch.manual_seed(0)
    crop = zero_padded_crop(SIDE, padding)
    matrices = crop_matrices(np.random.default_rng(0), 400, SIDE, padding, 0.5)
    batch = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1)] * 400))
    on_device = affine(batch, torch.from_numpy(matrices)).permute(0, 2, 3, 1).numpy()
    for crops in ([np.asarray(crop(image)) for _ in range(400)], on_device):
        outcomes = [windows[pixels.tobytes()] for pixels in crops]
        assert set(outcomes) == set(windows.values())
        assert np.mean([flip for flip, _, _ in outcomes]) == pytest.approx(0.5, abs=0.1)


def test_pickles_for_spawned_workers() -> None:
    transform = MultiView(zero_padded_crop(SIDE), AugMix())
    assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: zero_padded_crop(32, padding=-1), 'padding=-1'),
        (lambda: zero_padded_crop(32, hflip=1.5), 'hflip=1.5 probability'),
        (lambda: MultiView(_keep, _keep, num_views=0), 'num_views=0'),
        (lambda: MultiView(_keep, lambda image: torch.zeros(3, 4, 4))(_image(0)), 'Tensor ToTensor'),
        (lambda: MultiView(_keep, _keep)(Image.new('RGBA', (4, 4))), 'RGBA input_img_mode'),
    ],
)
def test_bad_arguments(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match='.*'.join(words.split())):
        call()
