"""What a run of train.py left in its output folder: flags, weights and the error on the validation split."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

from timm_p2be.checkpoints import Checkpoint, read_checkpoint
from timm_p2be.files import file_sha256, read_yaml
from timm_p2be.hub.errors import asking

_FILES = {'last': 'last.pth.tar', 'best': 'model_best.pth.tar'}
# arguments of a model that say where its weights or its table came from, or only matter in training
_NOT_THE_MODEL = ('embedding', 'embedding_init', 'freeze_embedding', 'cache_dir')


@dataclass(frozen=True, eq=False)
class Run:
    """A run of train.py at one of its checkpoints."""

    folder: Path
    flags: dict[str, Any]  # by their names in args.yaml
    path: Path  # of the checkpoint
    checkpoint: Checkpoint
    sha256: str  # of the checkpoint's file
    epoch: int  # index of the one after which it was written
    error: float | None  # on the validation split at that epoch, percent; None if that was not measured


def read_run(folder: Path, checkpoint: str = 'last') -> Run:
    """Return a run at 'last', 'best' or the path of another checkpoint of it, checked to belong together."""
    flags = read_flags(folder / 'args.yaml')
    path = folder / _FILES[checkpoint] if checkpoint in _FILES else Path(checkpoint)
    found = read_checkpoint(path)
    if not {'arch', 'epoch'} <= found.raw.keys() or 'model' not in found.args:
        raise ValueError(f'{path} is no training checkpoint; name a last.pth.tar or model_best.pth.tar of train.py.')
    trained, here = (_shown(entries['model'], entries.get('model_kwargs')) for entries in (found.args, flags))
    if trained != here or found.raw['arch'] != flags['model']:
        raise ValueError(f'{path} is a checkpoint of {trained}, but {folder} is a run of {here}. Name one of that run.')
    epoch = found.raw['epoch']
    whole = 'position' not in found.args  # a recovery file lies inside its epoch, so no row is about its weights
    error = _error(folder / 'summary.csv', epoch) if whole else None
    return Run(folder, flags, path, found, file_sha256(path), epoch, error)


def build_model(run: Run) -> nn.Module:
    """Return the run's network on the CPU, in float32 and evaluation mode, with the checkpoint's weights."""
    flags, state = run.flags, run.checkpoint.state_dict
    kwargs = {key: value for key, value in (flags.get('model_kwargs') or {}).items() if key not in _NOT_THE_MODEL}
    bits = {tensor.shape[1] for name, tensor in state.items() if name.endswith('.embedding.weight')}
    if bits and bits != {64}:  # a table that was pulled brings its own length
        kwargs['num_bits'] = bits.pop()
    try:
        sends_token = flags['model'].startswith('hf-hub:')
        with asking(flags['model'], None if sends_token else False):
            model = create_model(flags, **kwargs)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f'{run.path} does not fit {flags["model"]} as args.yaml describes it: {error}') from error
    return model.float().eval()


def create_model(flags: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """Return timm's model of the size that flags of train.py say; `kwargs` are further arguments of it."""
    size = flags.get('input_size')
    create = partial(
        timm.create_model,
        flags['model'],
        num_classes=flags['num_classes'],
        in_chans=size[0] if size else flags.get('in_chans') or 3,
        drop_rate=flags.get('drop') or 0.0,
        drop_path_rate=flags.get('drop_path'),
        **kwargs,
    )
    sides = tuple(size[1:]) if size else (flags.get('img_size'),) * 2
    if sides[0] and 'img_size' not in kwargs:
        try:
            return create(img_size=sides)
        except TypeError as error:  # convolutional backbones take images of any size
            if 'img_size' not in str(error):
                raise
    return create()


def data_config(flags: Mapping[str, Any], model: nn.Module, verbose: bool = False) -> dict[str, Any]:
    """Return timm's data config of flags of train.py, else the network's own."""
    config = resolve_data_config(dict(flags), model=model, verbose=verbose)
    channels = (flags.get('input_size') or [flags.get('in_chans')])[0]
    if channels:  # timm reads the channels of the model's own configuration when no size is given
        config['input_size'] = (channels, *config['input_size'][1:])
    return config


def label_names(run: Run, model: nn.Module) -> list[str]:
    """Return the names of the model's classes, of the data it was trained on; none if the checkpoint has not all."""
    names = run.checkpoint.raw.get('label_names') or []
    return [*map(str, names)] if len(names) == model.num_classes else []


def _shown(model: str, kwargs: Mapping[str, Any] | None) -> str:
    return f'{model} {json.dumps(kwargs or {}, sort_keys=True, default=str)}'  # YAML makes lists of tuples


def read_flags(path: Path) -> dict[str, Any]:
    """Return what an args.yaml of train.py holds."""
    if not path.is_file():
        raise ValueError(f'There is no {path}. Name the output folder of a run of train.py.')
    flags = read_yaml(path)
    missing = [key for key in ('model', 'num_classes', 'seed') if key not in (flags if isinstance(flags, dict) else {})]
    if missing:
        raise ValueError(f'{path} lacks {missing}; it has to be the args.yaml of a run of train.py.')
    return flags


def _error(path: Path, epoch: int) -> float | None:
    """Return the validation error after an epoch, percent, or None if the run has no such figure."""
    if not path.is_file():
        return None
    try:
        with path.open(newline='', encoding='utf-8') as file:
            rows = [row for row in csv.DictReader(file) if row.get('epoch') == str(epoch)]
        top1 = rows[-1].get('eval_top1') if rows else None
        return round(100 - float(top1), 6) if top1 else None
    except (OSError, ValueError, csv.Error) as problem:
        raise ValueError(f'{path} cannot be read: {problem}. Restore it, or pass results by --results.') from problem
