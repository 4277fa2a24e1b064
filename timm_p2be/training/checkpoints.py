"""Finds the checkpoint that a run goes on from, and resumes from one that is checked before anything is written."""

import argparse
import logging
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.task import ClassificationTask
from timm.utils import is_primary
from torch import Tensor

from timm_p2be.checkpoints import Checkpoint, read_checkpoint
from timm_p2be.files import Schema, check_schema, shown
from timm_p2be.training.conflicts import flag_name, reader

_logger = logging.getLogger('train')

_NAME = re.compile(r'(last|model_best|checkpoint-\d{1,9}|recovery-\d{1,9}-\d{1,9})\.pth\.tar')
# what --resume takes from the checkpoint's optimizer, so that another value on the command line would be ignored
_OPTIMIZER_SETTINGS = {'lr', 'momentum', 'weight_decay', 'opt_eps', 'opt_betas', 'opt_kwargs'}
_OPTIMIZER_SETTINGS |= {'p2be_lr', 'p2be_betas', 'p2be_weight_decay'}
# what makes the images of an epoch, their order and their random transforms
_EPOCH_SETTINGS = ['seed', 'world_size', 'batch_size', 'grad_accum_steps', 'workers', 'dataset', 'train_split']
_EPOCH_SETTINGS += ['train_num_samples', 'aug_splits', 'p2be_augmix', 'p2be_augmix_device', 'data_on_device']
_SHARES = {'world_size', 'batch_size', 'grad_accum_steps'}  # how processes and batches share the images of an update


@dataclass
class Position:
    """Where a run stands: in `epoch`, after `update` of its updates, with sums of loss parts over `count` images."""

    epoch: int = 0
    update: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    updates_per_epoch: int = 0  # of the run that saved it
    codes: str = ''  # bits of a learned table when the epoch began, see `live.packed_bits`


class Diverged(RuntimeError):
    """The loss, or some number that a checkpoint would hold, is no longer finite."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _are_sums(value: Any) -> bool:
    return isinstance(value, dict) and all(type(k) is str and type(v) is float for k, v in value.items())


_POSITION: Schema = {
    **dict.fromkeys(('epoch', 'update', 'count', 'updates_per_epoch'), ('a number from 0 on', _is_count)),
    'sums': ('an object of numbers', _are_sums),
    'codes': ('hexadecimal digits', lambda value: isinstance(value, str) and bool(re.fullmatch('[0-9a-f]*', value))),
}


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files in a run's folder that are named as checkpoints, the one that was written last first.

    The best one comes last: it may be a late copy of an early epoch.
    """
    files = [path for path in folder.glob('*.pth.tar') if _NAME.fullmatch(path.name)]
    return sorted(files, key=lambda path: (path.name != 'model_best.pth.tar', path.stat().st_mtime_ns), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that was written last of those that are whole and finite; warns of others."""
    for path in checkpoint_files(folder):
        try:
            check_finite(read_checkpoint(path).raw, str(path))
        except (ValueError, OSError) as error:
            _logger.warning(f'Passed over: {error}')
        else:
            return path
    return None


def non_finite(entries: Any, where: str = '') -> str | None:
    """Return where in nested entries of a checkpoint a tensor is not finite, or None."""
    if isinstance(entries, Tensor):
        return where if entries.is_floating_point() and not bool(entries.isfinite().all()) else None
    if isinstance(entries, float):
        return where if not math.isfinite(entries) else None
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries) if isinstance(entries, list) else ()
    return next(filter(None, (non_finite(value, f'{where}/{key}'.strip('/')) for key, value in pairs)), None)


def check_finite(entries: dict[str, Any], named: str) -> None:
    """Raise unless all numbers in a checkpoint are finite: those of a run that diverged are not."""
    if bad := non_finite(entries):
        raise ValueError(f'{named}: {bad} is not finite, so its run had diverged. Go on from an older checkpoint.')


def read_resumed(path: str) -> Checkpoint:
    """Return the checkpoint of --resume; an error names the newest sound file of its folder, if there is one."""
    try:
        found = read_checkpoint(path, what='--resume')
        check_finite(found.raw, f'--resume {path}')
    except ValueError as error:
        if sound := newest_checkpoint(Path(path).parent):
            raise ValueError(f'{error} The newest sound one there: --resume {sound}') from error
        raise
    return found


def check_checkpoint(checkpoint: dict[str, Any], args: argparse.Namespace, explicit: set[str]) -> None:
    """Refuse what is no training checkpoint or one of another model, and flags that its optimizer would replace."""
    missing = [key for key in ('state_dict', 'optimizer', 'epoch', 'arch') if key not in checkpoint]
    if missing:
        raise ValueError(
            f'--resume {args.resume}: not a training checkpoint, it lacks {missing}. To start from bare weights use '
            '--initial-checkpoint.'
        )
    if checkpoint['arch'] != args.model:
        raise ValueError(
            f'--resume {args.resume}: a checkpoint of {checkpoint["arch"]!r}, but --model is {args.model!r}.'
        )
    saved = checkpoint.get('args')
    recorded = getattr(saved, 'model_kwargs', None) or args.model_kwargs
    was, now = (kwargs.get('encoding', 'p2be') for kwargs in (recorded, args.model_kwargs))
    if was != now:  # weights under two fixed codes have the same shapes
        raise ValueError(f'--resume {args.resume}: a model with encoding={was}, but --model-kwargs has encoding={now}.')
    for name in () if args.no_resume_opt else ('opt', *sorted(explicit.intersection(_OPTIMIZER_SETTINGS))):
        now = getattr(args, name)
        if (was := getattr(saved, name, now)) != now:
            flag = flag_name(name)
            raise ValueError(
                f'{flag} {now}: --resume goes on with the optimizer of {args.resume}, which has {was}. Leave {flag} '
                'as it was, or start the optimizer afresh by --no-resume-opt.'
            )


def resume(
    checkpoint: dict[str, Any],
    args: argparse.Namespace,
    task: ClassificationTask,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any,
) -> Position:
    """Load a checkpoint into task, optimizer and scaler and return where its run goes on.

    An epoch's checkpoint goes on with the next epoch, a recovery file of ours inside its epoch.

    Without an optimizer, that and the scaler start afresh.
    """
    try:
        own = checkpoint.get('buffers', [])
        if len(own) == args.world_size > 1:  # of as many processes: each goes on with its own
            for key, buffers in own[args.rank].items():
                checkpoint[key] = {**checkpoint[key], **buffers}
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict']), checkpoint.get('task_state'))
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint['optimizer'])
            if scaler is not None and scaler.state_dict_key in checkpoint:
                scaler.load_state_dict(checkpoint[scaler.state_dict_key])
        position = getattr(checkpoint.get('args'), 'position', None)
        if position is not None:
            check_schema(position, _POSITION, 'position')
            return Position(**position)
        check_schema(checkpoint, {'epoch': _POSITION['epoch']}, 'the checkpoint', extra=True)
        return Position(checkpoint['epoch'] + (checkpoint.get('version', 1) > 1))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'--resume {args.resume}: does not fit this run: {str(error).rstrip(".")}. Give --model, --model-kwargs, '
            '--num-classes and --opt of the run that wrote it.'
        ) from error


def resume_ema(checkpoint: dict[str, Any], task: ClassificationTask) -> None:
    """Load the averaged weights of a checkpoint, or its plain ones if the run had no average."""
    state = checkpoint.get('state_dict_ema') or checkpoint['state_dict']
    task.load_checkpoint_state(clean_state_dict(state), checkpoint.get('task_state_ema'), ema=True)


def fit_position(position: Position, saved: dict[str, Any], args: argparse.Namespace, updates: int) -> Position:
    """Return where in its epoch, of `updates` updates, a run goes on that was saved with the flags `saved`.

    Between epochs any change is allowed, and logged. Inside one the images that were seen must be those that this run
    would have seen by then: only the number of processes may differ, with the batches that are due to it.

    Raises:
        ValueError: images would be trained on twice or never.
    """
    changed = {name for name in _EPOCH_SETTINGS if name in saved and shown(saved[name]) != shown(getattr(args, name))}
    was = [_told(name, getattr(args, name), saved[name]) for name in _EPOCH_SETTINGS if name in changed]
    if not changed and position.updates_per_epoch not in (0, updates):
        was = [f'{updates} updates an epoch, was {position.updates_per_epoch} (is it the same data?)']
    inside = 0 < position.update < position.updates_per_epoch
    fit = _fit_images(position, saved, args, changed) if was and inside else position
    if fit is None:
        raise ValueError(
            f'--resume {args.resume}: saved inside epoch {position.epoch}, after update {position.update} of '
            f'{position.updates_per_epoch}, by a run with other settings: {"; ".join(was)}. Some images would '
            'be trained on twice and others never. Set them as they were, or go on from the end of an epoch '
            '(last.pth.tar, checkpoint-*.pth.tar), where they may change.'
        )
    if was and is_primary(args):
        _logger.info(f'Other settings than in the run of {args.resume}: {"; ".join(was)}.')
    if position.update and not inside:  # only validation was left
        return replace(fit, update=updates, updates_per_epoch=updates)
    return replace(fit, updates_per_epoch=updates)


def _told(name: str, now: Any, was: Any) -> str:
    return f'{"processes" if name == "world_size" else flag_name(name)} {now}, was {shown(was)}'


def _fit_images(
    position: Position, saved: dict[str, Any], args: argparse.Namespace, changed: set[str]
) -> Position | None:
    """Return the position at which another number of processes has seen the same images, if there is one."""
    if 'world_size' not in changed or not changed <= _SHARES or reader(args) in ('wds', 'hfids'):
        return None
    if not all(_is_count(saved.get(name)) and saved[name] for name in _SHARES):
        return None
    if 1 in (args.world_size, saved['world_size']):  # one process alone shuffles by another sampler
        return None
    each = saved['batch_size'] * saved['grad_accum_steps']
    update, rest = divmod(
        position.update * each * saved['world_size'], args.batch_size * args.grad_accum_steps * args.world_size
    )
    if rest:
        return None
    ratio = saved['world_size'] / args.world_size  # sums and count are those of one process
    sums = {name: value * ratio for name, value in position.sums.items()}
    return replace(position, update=update, sums=sums, count=round(position.count * ratio))
