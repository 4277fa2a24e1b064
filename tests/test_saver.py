"""The saver of train.py: timm's files, sound at every point where a write can be cut off, and nothing left behind."""

import argparse
import hashlib
import itertools
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import checkpoint, rewrite
from timm.utils import CheckpointSaver
from torch import nn

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.training import saver as saver_module
from timm_p2be.training.checkpoints import checkpoint_files, newest_checkpoint
from timm_p2be.training.output import OutputFolder
from timm_p2be.training.saver import Saver

METRICS = [50.0, 40.0, 60.0, 60.0]


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut happens in a test."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def state(epoch: int, metric_name: str = 'top1') -> dict[str, Any]:
    args = argparse.Namespace(model='net', eval_metric=metric_name)
    weights = {'weight': torch.full((2000,), float(epoch))}
    return {'state_dict': weights, 'optimizer': {}, 'epoch': epoch, 'arch': 'net', 'version': 2, 'args': args}


def contents(folder: Path) -> dict[str, int]:
    """Name -> epoch of every checkpoint in a folder, each of which is read whole."""
    return {path.name: read_checkpoint(path).raw['epoch'] for path in checkpoint_files(folder)}


@pytest.mark.parametrize('metric_name', ['top1', 'loss'])
def test_files_and_ranking_are_those_of_timms_saver(tmp_path, metric_name):
    folders = tmp_path / 'ours', tmp_path / 'timms'
    for folder in folders:
        folder.mkdir()
    ours = Saver(folders[0], metric_name, keep=3)
    model = nn.Linear(1, 1)
    timms = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters()),
        checkpoint_dir=str(folders[1]),
        decreasing=metric_name == 'loss',
        max_history=3,
    )
    draw = random.Random(0)
    for epoch in range(12):
        metric = float(draw.randrange(8))  # with ties
        ours.save_checkpoint(state(epoch, metric_name), epoch, metric)
        timms.save_checkpoint(epoch, metric)
        entries = [read_checkpoint(folder / 'last.pth.tar').raw['saver'] for folder in folders]
        assert entries[0] == entries[1]
        assert contents(folders[0]) == contents(folders[1])


def test_each_file_is_a_copy_of_its_own_with_its_sha256(tmp_path):
    Saver(tmp_path, 'top1', keep=2).save_checkpoint(state(0), 0, 50.0)
    files = checkpoint_files(tmp_path)
    assert {path.name for path in files} == {'last.pth.tar', 'checkpoint-0.pth.tar', 'model_best.pth.tar'}
    assert {path.stat().st_nlink for path in files} == {1}
    for path in files:  # as `sha256sum --check` wants them
        told = path.with_name(f'{path.name}.sha256').read_text()
        assert told == f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n'


def cut_off(patch: pytest.MonkeyPatch, folder: Path, copies: Path) -> Callable[[], int]:
    """Keep the folder as a kill would leave it: before every fsync, rename and removal, and amid every write."""
    count = itertools.count()

    def keep() -> None:
        shutil.copytree(folder, copies / f'{next(count):04}')

    def watch(owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            keep()
            return method(*args, **kwargs)

        patch.setattr(owner, name, watched)

    write = saver_module._Hashed.write

    def write_in_halves(self: Any, block: bytes) -> int:
        if len(block) < 5000:
            return write(self, block)
        half = len(block) // 2
        written = write(self, block[:half])
        self.flush()
        keep()
        return written + write(self, block[half:])

    patch.setattr(saver_module._Hashed, 'write', write_in_halves)
    for owner, name in ((os, 'fsync'), (Path, 'replace'), (Path, 'unlink')):
        watch(owner, name)
    return lambda: next(count)


def test_a_kill_at_any_point_of_a_save_leaves_what_was_there_or_what_comes(tmp_path, monkeypatch):
    folder, copies = tmp_path / 'run', tmp_path / 'copies'
    folder.mkdir()
    saver = Saver(folder, 'top1', keep=2)
    before: dict[str, int] = {}
    for epoch, metric in enumerate(METRICS):
        copies.mkdir()
        with monkeypatch.context() as patch:
            count = cut_off(patch, folder, copies)
            saver.save_checkpoint(state(epoch), epoch, metric)
            assert count() > 8
        after = contents(folder)
        for copy in sorted(copies.iterdir()):
            found = contents(copy)
            assert before.keys() - found.keys() <= before.keys() - after.keys(), copy  # nothing else is ever missing
            output = OutputFolder(copy)
            epochs = found['last.pth.tar'] + 1 if found else 0
            Saver(copy, 'top1', keep=2).restore(epochs)
            output.close()
            assert contents(copy) == (after if epochs == epoch + 1 else before), copy
            named = [path.name for path in checkpoint_files(copy)]
            assert {path.name.removesuffix('.sha256') for path in copy.iterdir()} == {*named}  # no litter
        before = after
        shutil.rmtree(copies)


def test_a_kill_at_any_point_of_a_recovery_file_leaves_one_to_go_on_from(tmp_path, monkeypatch):
    folder, copies = tmp_path / 'run', tmp_path / 'copies'
    for place in (folder, copies):
        place.mkdir()
    for update in range(1, 5):
        Saver(folder, 'top1', keep=2).save_recovery(state(update), 0, update)  # a new one: as after a restart
    assert sorted(contents(folder)) == ['recovery-0-2.pth.tar', 'recovery-0-3.pth.tar']
    cut_off(monkeypatch, folder, copies)
    Saver(folder, 'top1', keep=2).save_recovery(state(5), 0, 5)
    for copy in copies.iterdir():
        newest = newest_checkpoint(copy)
        assert newest.name in ('recovery-0-3.pth.tar', 'recovery-0-4.pth.tar')
    assert sorted(contents(folder)) == ['recovery-0-3.pth.tar', 'recovery-0-4.pth.tar']


def test_files_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    """After a power cut, which forgets what was not synchronized: file, name, then the folder that holds the name."""
    done: list[str] = []
    replace = Path.replace

    def note_fsync(descriptor: int) -> None:
        done.append('folder' if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else 'file')

    def note_replace(self: Path, target: Path) -> Path:
        done.append('name')
        return replace(self, target)

    monkeypatch.setattr(os, 'fsync', note_fsync)
    monkeypatch.setattr(Path, 'replace', note_replace)
    Saver(tmp_path, 'top1', keep=1).save_recovery(state(0), 0, 1)
    assert done == ['file', 'file', 'name', 'folder', 'file', 'name', 'folder']


@pytest.mark.parametrize('room', [0, 9000])
def test_a_full_disk_keeps_what_was_there_and_leaves_no_litter(tmp_path, room):
    """A limit on the size of files stands for it: the system refuses the write in the same way."""
    saver = Saver(tmp_path, 'top1', keep=2)
    saver.save_checkpoint(state(0), 0, 50.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            saver.save_checkpoint(state(1), 1, 60.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    saver.save_checkpoint(state(1), 1, 60.0)
    assert contents(tmp_path)['model_best.pth.tar'] == 1


def restored(folder: Path, epochs: int) -> tuple[dict[int, float], int | None]:
    saver = Saver(folder, 'top1', keep=2)
    saver.restore(epochs)
    return saver.ranked, saver.best_epoch


def test_history_comes_from_the_folder(tmp_path, caplog):
    saver = Saver(tmp_path, 'top1', keep=2)
    for epoch, metric in enumerate(METRICS):
        saver.save_checkpoint(state(epoch), epoch, metric)
    assert restored(tmp_path, 4) == ({2: 60.0, 3: 60.0}, 2)
    damaged = tmp_path / 'checkpoint-2.pth.tar'
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert restored(tmp_path, 4) == ({2: 60.0, 3: 60.0}, 2)  # from model_best, which is the same
    assert 'Not ranked: checkpoint' in caplog.text
    assert contents(tmp_path)['checkpoint-2.pth.tar'] == 2
    # back to the end of epoch 2: what came later is no history of this run
    assert restored(tmp_path, 3) == ({2: 60.0}, 2)


@pytest.mark.parametrize('metric', [101.0, -1.0, float('nan'), '99', None])
def test_a_metric_that_cannot_be_ranks_nothing(tmp_path, metric):
    """timm takes `best_metric` as it is in the file, and writes no model_best from then on.

    It deletes what the history lists once it is no longer ranked, wherever it lies.
    """
    (victim := tmp_path / 'victim').touch()
    Saver(tmp_path, 'top1', keep=2).save_checkpoint(state(0), 0, 50.0)
    names = [('victim', metric), (str(victim), metric), (f'../{tmp_path.name}/victim', metric)]
    hostile = {'best_metric': metric, 'best_epoch': 0, 'checkpoint_files': names}
    for name in ('last', 'model_best', 'checkpoint-0'):
        path = tmp_path / f'{name}.pth.tar'
        rewrite(path, {**checkpoint(path), 'metric': metric, 'saver': {**hostile, 'pending': (0, metric)}})
    saver = Saver(tmp_path, 'top1', keep=1)
    saver.restore(1)
    assert (saver.ranked, saver.best_epoch) == ({}, None)
    saver.save_checkpoint(state(1), 1, 40.0)
    assert contents(tmp_path)['model_best.pth.tar'] == 1
    assert victim.exists()


def test_names_of_others_are_left_alone(tmp_path):
    names = ['tmp.pth.tar', 'last.pth.tar.bak', 'checkpoint-best.pth.tar', 'recovery-1.pth.tar', '.hidden.pth.tar.x.1']
    for name in names:
        (tmp_path / name).write_bytes(b'mine')
    output = OutputFolder(tmp_path)
    (tmp_path / '.last.pth.tar.host.123').write_bytes(b'half a file')
    (tmp_path / '.recovery-0-1.pth.tar.sha256.host.123').write_bytes(b'')
    output.close()
    output = OutputFolder(tmp_path)
    saver = Saver(tmp_path, 'top1', keep=1)
    for epoch in range(3):
        saver.save_checkpoint(state(epoch), epoch, float(epoch))
        saver.save_recovery(state(epoch), epoch, 1)
    output.clear()
    output.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
