"""Small training runs of train.py for the tests: 24 random images, a network of a few thousand weights."""

import csv
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils.checkpoint_saver import load_checkpoint_metadata

from timm_p2be.training.arguments import parse_args
from timm_p2be.training.run import Run
from timm_p2be.training.stopping import StopSignal

TINY = ('--img-size', '32', '--model', 'encoded', '--model-kwargs', 'backbone=test_resnet', 'num_bits=8')
SHORT = ('--num-classes', '2', '--batch-size', '8', '--epochs', '1', '--warmup-epochs', '0', '--workers', '0')
CPU = ('--device', 'cpu')
SGD = ('--opt', 'sgdp2be', '--lr', '0.05')
VIEWS = ('--p2be-augmix', '3', '--aug-splits', '3', '--jsd-loss', '--p2be-crop-padding', '4')
# two epochs, with a recovery file after every update
WHOLE = (*VIEWS, '--epochs', '2', '--sched-on-updates', '--recovery-interval', '1')
# timm's readers leave images open
OPEN_FILES = [
    pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning'),
    pytest.mark.filterwarnings('ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'),
]
SPEED = ('train_images_per_second', 'train_data_wait')  # columns of summary.csv that differ from run to run


def write_images(folder: Path, training: int = 24, validation: int = 8, classes: str = 'ab') -> Path:
    """Write random 32x32 PNG files of the classes, a letter each, in folder/{train,validation}/CLASS."""
    generator = np.random.default_rng(0)
    for split, count in (('train', training), ('validation', validation)):
        for index in range(count):
            path = folder / split / classes[index % len(classes)] / f'{index:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def command(data: Path, output: Path, *flags: str, model: Sequence[str] = TINY, opt: Sequence[str] = SGD) -> list[str]:
    """Return the words of a short run on the CPU whose results land in `output`."""
    where = ('--data-dir', str(data), '--output', str(output.parent), '--experiment', output.name)
    return [*where, *model, *SHORT, *CPU, *opt, *flags]


def build(*words: str) -> Run:
    """Return a run that is ready to train."""
    return Run(parse_args(words), StopSignal())


def at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Let `action` happen before the `number`-th call of a method, counted from 1, and no other."""
    method, calls = getattr(owner, name), itertools.count(1)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            action()
        return method(*args, **kwargs)

    patch.setattr(owner, name, counted)


def summary(output: Path) -> list[dict[str, str]]:
    """Return the rows of summary.csv without the columns on speed."""
    with (output / 'summary.csv').open(newline='') as file:
        return [{key: value for key, value in row.items() if key not in SPEED} for row in csv.DictReader(file)]


def checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of timm's saver, read safely."""
    return load_checkpoint_metadata(str(path))


def rewrite(path: Path, content: Any) -> None:
    """Save a checkpoint in place of one that timm may have mapped into memory, and whose sha256 it has not."""
    torch.save(content, path.with_suffix('.new'))
    path.with_suffix('.new').replace(path)
    path.with_name(f'{path.name}.sha256').unlink(missing_ok=True)


def assert_equal(ours: Any, theirs: Any, where: str = '') -> None:
    """Compare nested checkpoint entries bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f'{where}/{key}')
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f'{where}/{index}')
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def assert_same_state(ours: Path, theirs: Path) -> None:
    """Compare weights, moving average and optimizer state of two checkpoints bit for bit."""
    one, other = checkpoint(ours), checkpoint(theirs)
    for key in ('state_dict', 'state_dict_ema', 'optimizer', 'epoch'):
        assert_equal(one.get(key), other.get(key), key)
