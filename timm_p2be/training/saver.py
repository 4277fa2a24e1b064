"""Writes the checkpoints of a run: in timm's format and names, each whole or not at all, its sha256 beside it."""

import argparse
import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model

from timm_p2be.checkpoints import read_checkpoint, sha256_beside
from timm_p2be.files import atomic_write
from timm_p2be.training.checkpoints import Diverged, checkpoint_files, non_finite

_logger = logging.getLogger('train')

_RECOVERY_FILES = 2  # the one before the newest, in case that is damaged
_RANKED = re.compile(r'checkpoint-(\d{1,9})\.pth\.tar')


def training_state(
    args: argparse.Namespace, task: ClassificationTask, optimizer: torch.optim.Optimizer, scaler: Any, epoch: int
) -> dict[str, Any]:
    """Return the entries of a checkpoint in timm's format, which share their tensors with the run.

    Raises:
        Diverged: some number among them is not finite.
    """
    state = {
        'epoch': epoch,
        'arch': args.model,
        'version': 2,  # of timm's format: the epoch is the one that was trained
        'args': args,
        'optimizer': optimizer.state_dict(),
        **task.get_checkpoint_state(),
        **task.get_checkpoint_state(ema=True),
    }
    if scaler is not None:
        state[scaler.state_dict_key] = scaler.state_dict()
    if bad := non_finite(state):
        raise Diverged(f'{bad} is no longer finite')
    return state


def all_buffers(task: ClassificationTask, state: dict[str, Any]) -> dict[str, Any]:
    """Return the buffers of all processes, which BatchNorm lets differ until an epoch ends; every process has to call.

    `--dist-bn` averages them then, so that a run that went on from those of the first process would not end the same.
    """
    trained = {name for name, _ in unwrap_model(task.get_trainable_module()).named_parameters()}
    own = {
        key: {name: value.cpu() for name, value in state[key].items() if name not in trained}
        for key in ('state_dict', 'state_dict_ema')
        if key in state
    }
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return {'buffers': gathered}


class _Hashed:
    """A file for torch.save that takes the sha256 of what is written, and keeps the error that torch makes its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        try:
            return self.file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class Saver:
    """The checkpoints in a run's folder: `last`, the `keep` best ones, the best of them, and two recovery files.

    What a run resumes is known from the folder and the files of our own names in it; a checkpoint's entry `saver` is
    written for timm's train.py, and never read.

    Args:
        folder: the run's, which nobody else writes.
        metric_name: of `summary.csv`; 'loss', or a share in percent.
        keep: number of ranked checkpoints, at least 1.
    """

    def __init__(self, folder: Path, metric_name: str, keep: int) -> None:
        self.folder, self.metric_name, self.keep = folder, metric_name, keep
        self.ranked: dict[int, float] = {}  # epoch -> metric of the files checkpoint-EPOCH.pth.tar
        self.best_epoch: int | None = None  # of model_best.pth.tar

    def restore(self, epochs: int) -> None:
        """Take up the ranking of a run of which `epochs` are done, and finish what a kill after them left undone."""
        for path in checkpoint_files(self.folder):
            if (match := _RANKED.fullmatch(path.name)) and int(match[1]) < epochs:
                score = self._score(path)
                if score and score[0] == int(match[1]):
                    self.ranked[score[0]] = score[1]
        best, last = (self._score(self.folder / name) for name in ('model_best.pth.tar', 'last.pth.tar'))
        if best and best[0] < epochs:
            self.best_epoch = best[0]
            if self.ranked.get(best[0]) != best[1]:  # lost, or deleted to save space
                self._copy('model_best', f'checkpoint-{best[0]}')
                self.ranked[best[0]] = best[1]
        if last and last[0] == epochs - 1:
            self._rank(*last)
        elif self.ranked:
            self._settle()

    def _score(self, path: Path) -> tuple[int, float] | None:
        """Return epoch and metric of a sound checkpoint of a whole epoch, else None."""
        if not path.is_file():
            return None
        try:
            found = read_checkpoint(path)
        except (ValueError, OSError) as error:
            _logger.warning(f'Not ranked: {error}')
            return None
        epoch, metric = found.raw.get('epoch'), found.raw.get('metric')
        limit = math.inf if self.metric_name == 'loss' else 100
        if type(epoch) is int and type(metric) is float and 0 <= metric <= limit:
            return (epoch, metric) if found.args.get('eval_metric') == self.metric_name else None
        return None

    def _order(self) -> list[int]:
        """Return the ranked epochs, the best first, of equal ones the earlier."""
        sign = 1 if self.metric_name == 'loss' else -1
        return sorted(self.ranked, key=lambda epoch: (sign * self.ranked[epoch], epoch))

    def save_checkpoint(self, state: Mapping[str, Any], epoch: int, metric: float) -> None:
        """Write a run's state after `epoch` as `last`, and as one of the ranked ones if it is among the best."""
        self._store('last', lambda file: self._save({**state, 'metric': metric, **self._for_timm(epoch, metric)}, file))
        self._rank(epoch, metric)

    def save_recovery(self, state: Mapping[str, Any], epoch: int, update: int) -> None:
        """Write a run's state inside an epoch and remove all recovery files but the newest two."""
        # timm counts updates from 0
        name = f'recovery-{epoch}-{max(update - 1, 0)}'
        self._store(name, lambda file: self._save({**state, **self._for_timm(None, None)}, file))
        recovery = [path for path in checkpoint_files(self.folder) if path.name.startswith('recovery-')]
        for old in recovery[_RECOVERY_FILES:]:
            self._remove(old)

    def _for_timm(self, epoch: int | None, metric: float | None) -> dict[str, Any]:
        order = self._order()
        files = [(f'checkpoint-{other}.pth.tar', self.ranked[other]) for other in order]
        best = order[0] if order else None
        best_metric = self.ranked[best] if best is not None else None
        return {
            'saver': {
                'checkpoint_files': files,
                'best_epoch': best,
                'best_metric': best_metric,
                'pending': (epoch, metric),
            }
        }

    def _rank(self, epoch: int, metric: float) -> None:
        """Copy `last`, of this epoch, to where its metric earns it a place; before anything is removed."""
        self.ranked[epoch] = metric
        order = self._order()
        if epoch in order[: self.keep]:
            self._copy('last', f'checkpoint-{epoch}')
        if order[0] == epoch:
            self.best_epoch = None  # of a former life of this epoch
        self._settle()

    def _settle(self) -> None:
        """Bring model_best up to date, then remove the checkpoints that lost their place."""
        order = self._order()
        if order[0] != self.best_epoch:
            self._copy(f'checkpoint-{order[0]}', 'model_best')
            self.best_epoch = order[0]
        for epoch in order[self.keep :]:
            self._remove(self.folder / f'checkpoint-{epoch}.pth.tar')
            del self.ranked[epoch]

    @staticmethod
    def _save(state: dict[str, Any], file: _Hashed) -> None:
        try:
            torch.save(state, file)  # type: ignore[arg-type]  # it only writes and flushes
        except RuntimeError as error:  # torch's own, about an error of ours
            raise (file.error or error) from error

    def _copy(self, source: str, target: str) -> None:
        def fill(file: _Hashed) -> None:
            with (self.folder / f'{source}.pth.tar').open('rb') as whole:
                shutil.copyfileobj(whole, file, 1 << 20)

        self._store(target, fill)

    def _store(self, name: str, fill: Callable[[_Hashed], None]) -> None:
        """Write a file, then its sha256; a kill between the two leaves it without one, never with another's."""
        path = self.folder / f'{name}.pth.tar'
        with atomic_write(path) as file:
            hashed = _Hashed(file)
            fill(hashed)
            file.flush()
            os.fsync(file.fileno())
            sha256_beside(path).unlink(missing_ok=True)
        with atomic_write(sha256_beside(path)) as file:
            file.write(f'{hashed.digest.hexdigest()}  {path.name}\n'.encode())

    def _remove(self, path: Path) -> None:
        sha256_beside(path).unlink(missing_ok=True)  # first: a kill leaves no sum without a file
        path.unlink(missing_ok=True)
