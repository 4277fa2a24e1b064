"""What `timm_p2be.timm_script` adds to timm's flags, through the functions that timm's own train.py calls."""

import importlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import OPEN_FILES, command
from timm.data import create_dataset, create_loader, create_transform, transforms_factory
from timm.data.dataset import AugMixDataset
from torch import Tensor

from timm_p2be import timm_script
from timm_p2be.data import AugMix
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.building import build_device
from timm_p2be.training.images import open_data
from timm_p2be.training.loading import build_loaders


def stages(**flags: Any) -> list[str]:
    """The names of the transforms in timm's three stages."""
    made = create_transform((3, 32, 32), is_training=True, separate=True, use_prefetcher=True, **flags)
    return [' '.join(type(transform).__name__ for transform in stage.transforms) for stage in made]


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ({'auto_augment': 'p2be-3', 'train_crop_mode': 'zeropad4'}, ['Compose', 'AugMix']),
        ({'auto_augment': 'p2be-3'}, ['RandomResizedCropAndInterpolation RandomHorizontalFlip', 'AugMix']),
        (
            {'train_crop_mode': 'zeropad4', 'vflip': 0.5, 'grayscale_prob': 0.1},
            ['Compose RandomVerticalFlip', 'ColorJitter RandomGrayscale'],
        ),
    ],
)
def test_names_choose_our_transforms(flags: dict[str, Any], expected: list[str]) -> None:
    assert stages(**flags) == [*expected, 'MaybePILToTensor']


def test_the_numbers_are_read() -> None:
    crop, augment, _ = create_transform(
        (3, 24, 16), is_training=True, separate=True, train_crop_mode='zeropad2', auto_augment='p2be-1.5', hflip=0.25
    )
    assert repr(augment.transforms[0]) == repr(AugMix(severity=1.5))
    assert repr(crop.transforms[0]).split() == (
        'Compose( RandomHorizontalFlip(p=0.25) RandomCrop(size=(24, 16), padding=2) )'.split()
    )


@pytest.mark.parametrize('separate', [True, False])
def test_what_timm_knows_stays_timms(separate: bool) -> None:
    timms = transforms_factory.transforms_imagenet_train.args[0]
    flags = {'auto_augment': 'rand-m9-mstd0.5', 'train_crop_mode': 'rkrc', 'vflip': 1.0, 'separate': separate}
    ours = create_transform(32, is_training=True, **flags)
    assert repr(ours) == repr(timms(32, **{'interpolation': 'bilinear', **flags}))


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'auto_augment': 'p2be-x'}, "Got 'p2be-x'; allowed is --aa p2be-SEVERITY"),
        ({'auto_augment': 'p2be-11'}, 'severity=11.0; it must be above 0 and at most 10'),
        ({'train_crop_mode': 'zeropad'}, "Got 'zeropad'; allowed is --train-crop-mode zeropadN"),
        ({'train_crop_mode': 'center'}, '--train-crop-mode center .*rrc, rkrc, rkrr and zeropadN'),
        ({'auto_augment': 'pbe'}, '--aa pbe. Unknown AA policy pbe .*p2be-SEVERITY'),
    ],
)
def test_wrong_names_are_explained(flags: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_transform(32, is_training=True, **flags)


VIEWS = ('--p2be-augmix', '3', '--aug-splits', '3', '--jsd-loss', '--p2be-crop-padding', '4', '--seed', '3')


def our_batch(data: Path, output: Path, *flags: str) -> tuple[Tensor, Tensor]:
    args = parse_args(command(data, output, *flags)).args
    device = build_device(args, set())
    model = timm.create_model('test_resnet', num_classes=2)
    loader = build_loaders(args, model, device, *open_data(args)).training
    torch.manual_seed(7)
    return next(iter(loader))


def timms_batch(data: Path, **flags: Any) -> tuple[Tensor, Tensor]:
    """As in train.py of timm 1.0.31: the data set is wrapped, then the loader is created."""
    loader = create_loader(
        AugMixDataset(create_dataset('', root=str(data), split='train', is_training=True), num_splits=3),
        input_size=(3, 32, 32),
        batch_size=8,
        is_training=True,
        num_aug_splits=3,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=0,
        device=torch.device('cpu'),
        **flags,
    )
    torch.manual_seed(7)
    return next(iter(loader))


@pytest.mark.filterwarnings(*(mark.args[0] for mark in OPEN_FILES))
def test_views_of_timms_loader_are_ours(data: Path, tmp_path: Path) -> None:
    """The same seed, the same batch: clean views, then two AugMix views of each. So the distributions are the same."""
    ours, labels = our_batch(data, tmp_path, *VIEWS, '--mean', '0', '0', '0', '--std', '1', '1', '1')
    theirs, their_labels = timms_batch(data, auto_augment='p2be-3', train_crop_mode='zeropad4')
    assert torch.equal(theirs, ours)
    assert torch.equal(their_labels, labels)
    clean, first, second = theirs.unflatten(0, (3, 8)).unbind()
    assert min((clean - first).abs().max(), (clean - second).abs().max(), (first - second).abs().max()) > 0.1
    plain = {np.asarray(Image.open(path)).tobytes() for path in (data / 'train').rglob('*.png')}
    inside = [(255 * image).round().byte().permute(1, 2, 0).numpy() for image in clean]
    assert not plain & {image.tobytes() for image in inside}, 'the clean views are cropped'


def rename(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transforms_factory, 'transforms_imagenet_train')


def move(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's factory takes its function from elsewhere."""
    timms = {
        **vars(transforms_factory),
        'transforms_imagenet_train': transforms_factory.transforms_imagenet_train.args[0],
    }
    monkeypatch.setattr(timm.data, 'create_transform', types.FunctionType(create_transform.__code__, timms))
    for name in ('__defaults__', '__kwdefaults__'):
        setattr(timm.data.create_transform, name, getattr(create_transform, name))


@pytest.mark.parametrize('change', [rename, move])
def test_a_timm_that_moved_its_function_is_named(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms_factory, 'transforms_imagenet_train', transforms_factory.transforms_imagenet_train)
    change(monkeypatch)
    before = vars(transforms_factory).get('transforms_imagenet_train')
    with pytest.raises(ImportError, match=r'timm .* otherwise than by transforms_imagenet_train .*timm-p2be train'):
        importlib.reload(timm_script)
    assert vars(transforms_factory).get('transforms_imagenet_train') is before
