"""Resumes a run from a checkpoint that is checked before anything is written."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.task import ClassificationTask

from timm_p2be.training.conflicts import flag_name

# what --resume takes from the checkpoint's optimizer, so that another value on the command line would be ignored
_OPTIMIZER_SETTINGS = {'lr', 'momentum', 'weight_decay', 'opt_eps', 'opt_betas', 'opt_kwargs'}
_OPTIMIZER_SETTINGS |= {'p2be_lr', 'p2be_betas', 'p2be_weight_decay'}


@dataclass
class Position:
    """Where a run stands: in `epoch`, after `update` of its updates, with sums of loss parts over `count` images."""

    epoch: int = 0
    update: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that was written last, without what timm had half written when it was killed."""
    whole = [file for file in folder.glob('*.pth.tar') if not file.name.endswith('tmp.pth.tar')]
    return max(whole, key=lambda file: file.stat().st_mtime, default=None)


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
    path: str,
    task: ClassificationTask,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any,
) -> Position:
    """Load a checkpoint into task, optimizer and scaler and return where its run goes on.

    An epoch's checkpoint goes on with the next epoch, a recovery file of ours inside its epoch.

    Without an optimizer, that and the scaler start afresh.
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
