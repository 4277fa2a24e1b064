"""--p2be-augmix-device and --data-on-device: the images of the ordinary loader, resumed exactly, or a clear error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import OPEN_FILES, VIEWS, assert_same_state, command, summary, write_images
from torch import Tensor

from timm_p2be.training import device_batches
from timm_p2be.training import run as train
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.stopping import StopSignal

pytestmark = OPEN_FILES
PLAIN = ('--p2be-crop-padding', '0', '--hflip', '0')
HELD, BATCH = '--data-on-device', ('--p2be-augmix-device', 'batch')


def epochs(
    data: Path, output: Path, *flags: str, numbers: tuple[int, ...] = (0,), same: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Return the training batches of some epochs of a run."""
    run = train.Run(parse_args(command(data, output, *flags)), StopSignal())
    batches = []
    if same:
        run.loaders.training.dataset.images[:] = run.loaders.training.dataset.images[0].clone()
    for number in numbers:
        run._seed_epoch(number)
        batches += list(run.loaders.training)
    run.close()
    return batches


@pytest.mark.parametrize('flags', [(HELD,), BATCH], ids=' '.join)
def test_clean_views_and_labels_come_in_the_loaders_order(data, tmp_path, flags):
    """By default the loader's workers augment on a CPU; without crop and flip its clean views are ours."""
    views = (*VIEWS, *PLAIN, '--mean', '0.2', '--std', '0.3')
    theirs, ours = (epochs(data, tmp_path / kind, *views, *more) for kind, more in (('1', ()), ('2', flags)))
    assert len(ours) == len(theirs) == 3
    for (images, labels), (expected, targets) in zip(ours, theirs, strict=True):
        assert (images.shape, images.dtype) == ((24, 3, 32, 32), torch.float32)
        assert torch.equal(images[:8], expected[:8])
        assert torch.equal(labels, targets)
        clean, one, two = images.split(8)
        assert not any(torch.equal(*pair) for view in (one, two) for pair in zip(view, clean, strict=True))
        assert not torch.equal(one, two)


def test_one_view_is_cropped_mixed_or_erased(data, tmp_path):
    whole = ('--p2be-crop-padding', '4', '--color-jitter', '0', HELD)
    runs = [(), ('--p2be-augmix', '3'), ('--reprob', '1', '--remode', 'const')]
    views = [epochs(data, tmp_path / str(number), *whole, *more)[0][0] for number, more in enumerate(runs)]
    assert all(images.shape == (8, 3, 32, 32) for images in views)
    assert (views[0] == views[0].min()).all(1).any(1).any(1).sum() > 4  # black came in from outside
    assert not any(torch.equal(views[0], other) for other in views[1:])


def test_draws_are_those_of_epoch_and_batch(data, tmp_path):
    """Of one image, in place of all, an epoch makes the same views each time, and every batch and epoch others."""
    images = [images for images, _ in epochs(data, tmp_path, *VIEWS, HELD, numbers=(1, 1, 2), same=True)]
    assert len(images) == 9
    assert all(torch.equal(*pair) for pair in zip(images[:3], images[3:6], strict=True))
    assert not any(torch.equal(images[0], other) for other in (*images[1:3], *images[6:]))


@pytest.mark.parametrize('flags', [(HELD,), pytest.param(BATCH, marks=pytest.mark.slow)], ids=' '.join)
def test_resumed_inside_an_epoch(data, tmp_path, flags, capsys):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    settings = (*VIEWS, '--epochs', '2', '--sched-on-updates')
    assert train.main(command(data, whole, *settings, *flags, '--recovery-interval', '1')) == 0
    resumed = (*settings, '--resume', str(whole / 'recovery-1-1.pth.tar'))
    assert train.main(command(data, parts, *resumed, *flags)) == 0
    assert_same_state(whole / 'last.pth.tar', parts / 'last.pth.tar')
    assert summary(whole)[1:] == summary(parts)
    assert train.main(command(data, tmp_path / 'other', *resumed)) == 2
    assert "--p2be-augmix-device workers, was 'batch'" in capsys.readouterr().err


def test_images_that_cannot_be_held(tmp_path, capsys, monkeypatch):
    def refused(*flags: str) -> str:
        assert train.main(command(folder, tmp_path / 'out' / 'run', *VIEWS, HELD, *flags)) == 2
        assert not (tmp_path / 'out').exists()
        return capsys.readouterr().err

    folder: Any = write_images(tmp_path / 'data')
    assert 'the network takes, (3, 24, 24); image 0 has (3, 32, 32). Resize' in refused('--img-size', '24')
    with monkeypatch.context() as patch:
        patch.setattr(device_batches, '_memory', lambda device: 2 * 24 * 3 * 32 * 32 - 1)
        assert '24 images of (3, 32, 32) take 0.0 GiB, more than half' in refused()
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(folder / 'train' / 'b' / '023.png')
    assert 'image 23 has (3, 32, 40)' in refused()
