"""Resumes a run from a checkpoint that is checked before anything is written."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.task import ClassificationTask
from torch import Tensor

from timm_p2be import checkpoints as weights
from timm_p2be.encodings.codes import LEVELS

# what --resume takes from the checkpoint's optimizer, so that another value on the command line would be ignored
_OPTIMIZER_SETTINGS = ('lr', 'momentum', 'weight_decay', 'opt_eps', 'opt_betas', 'opt_kwargs')
_TABLE_SETTINGS = ('p2be_lr', 'p2be_betas', 'p2be_weight_decay')


@dataclass
class Position:
    """Where a run stands: in `epoch`, after `update` of its updates, with sums of loss parts over `count` images."""

    epoch: int = 0
    update: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0


def with_position(args: argparse.Namespace, position: Position | None) -> argparse.Namespace:
    """Return the flags for a checkpoint; in a recovery file they carry the position, which timm has no entry for."""
    return argparse.Namespace(**vars(args), **({'position': asdict(position)} if position else {}))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that was written last, without what timm had half written when it was killed."""
    whole = [file for file in folder.glob('*.pth.tar') if not file.name.endswith('tmp.pth.tar')]
    return max(whole, key=lambda file: file.stat().st_mtime, default=None)


def read_checkpoint(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the entries of a training checkpoint, or raise ValueError: no checkpoint, or one of another model."""
    checkpoint = weights.read_checkpoint(path, what='--resume').raw
    missing = [key for key in ('state_dict', 'optimizer', 'epoch', 'arch') if key not in checkpoint]
    if missing:
        raise ValueError(
            f'--resume {path}: not a training checkpoint, it lacks {missing}. To start from bare weights use '
            '--initial-checkpoint.'
        )
    if checkpoint['arch'] != args.model:
        raise ValueError(f'--resume {path}: a checkpoint of {checkpoint["arch"]!r}, but --model is {args.model!r}.')
    recorded = getattr(checkpoint.get('args'), 'model_kwargs', None) or args.model_kwargs
    was, now = (kwargs.get('encoding', 'p2be') for kwargs in (recorded, args.model_kwargs))
    if was != now:  # weights under two fixed codes have the same shapes
        raise ValueError(f'--resume {path}: a model with encoding={was}, but --model-kwargs has encoding={now}.')
    return checkpoint


def table_bits(state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the number of bits of the learned table in a model's weights, None if they have none."""
    tables = (tensor for name, tensor in state_dict.items() if name.endswith('.embedding.weight'))
    return next((table.shape[1] for table in tables if table.ndim == 2 and len(table) == LEVELS), None)


def check_optimizer(checkpoint: dict[str, Any], args: argparse.Namespace, explicit: set[str]) -> None:
    """Refuse optimizer flags that the checkpoint's state would silently replace."""
    saved = checkpoint.get('args') or argparse.Namespace()
    names = ['opt', *(name for name in (*_OPTIMIZER_SETTINGS, *_TABLE_SETTINGS) if name in explicit)]
    for name in names:
        was, now = getattr(saved, name, None), getattr(args, name)
        if hasattr(saved, name) and was != now:
            flag = '--' + name.replace('_', '-')
            raise ValueError(
                f'{flag} {now}: --resume goes on with the optimizer of {args.resume}, which has {was}. Leave {flag} '
                'as it was, or start the optimizer afresh by --no-resume-opt.'
            )


def resume(
    checkpoint: dict[str, Any],
    path: str,
    task: ClassificationTask,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any,
) -> Position:
    """Load a checkpoint into task, optimizer and scaler and return where its run goes on.

    An epoch's checkpoint goes on with the next epoch, a recovery file of ours inside its epoch.

    Args:
        checkpoint: result of `read_checkpoint`.
        path: its file.
        task: task whose model takes the weights.
        optimizer: takes its state, or None to start it (and the scaler) afresh.
        scaler: gradient scaler that takes its state, or None.
    """
    try:
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict']), checkpoint.get('task_state'))
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint['optimizer'])
            if scaler is not None and scaler.state_dict_key in checkpoint:
                scaler.load_state_dict(checkpoint[scaler.state_dict_key])
        position = getattr(checkpoint.get('args'), 'position', None)
        if position is not None:
            return Position(**position)
        return Position(checkpoint['epoch'] + (checkpoint.get('version', 1) > 1))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'--resume {path}: does not fit this run: {error}. Give --model, --model-kwargs, --num-classes and --opt '
            'of the run that wrote it.'
        ) from error


def resume_ema(checkpoint: dict[str, Any], task: ClassificationTask) -> None:
    """Load the averaged weights of a checkpoint, or its plain ones if the run had no average."""
    state = checkpoint.get('state_dict_ema') or checkpoint['state_dict']
    task.load_checkpoint_state(clean_state_dict(state), checkpoint.get('task_state_ema'), ema=True)


def weights_are_finite(task: ClassificationTask) -> bool:
    """Return whether every parameter is a finite number, so that a checkpoint is worth keeping."""
    model = task.get_trainable_module()
    assert model is not None
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
