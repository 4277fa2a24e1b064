"""Refuses what a user would stumble over: flags that have no effect beside others, and values that cannot be meant."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.models import resolve_model_input_args, split_model_name_tag

from timm_p2be.encodings.table_file import names_table
from timm_p2be.hub.errors import asking
from timm_p2be.training.flags import DATASETS

# What the flags of a learned table mean when neither recipe nor command line sets them (docs/protocol.md).
EMBEDDING_DEFAULTS: dict[str, Any] = {
    'p2be_smoothness': 1.0,
    'p2be_reduction': 'mean',
    'p2be_init': 'normal',
    'p2be_lr': 1e-4,
    'p2be_betas': [0.999, 0.999],
    'p2be_weight_decay': 1e-4,
    'p2be_sched': 'cosine',
    'p2be_min_lr': 1e-6,
}
TRAINED_ONLY = tuple(name for name in EMBEDDING_DEFAULTS if name != 'p2be_init')  # no use to a frozen table
_OPTIMIZER = tuple(name for name in TRAINED_ONLY if name not in ('p2be_smoothness', 'p2be_reduction'))
_LEARNED = ('p2be_embedding', 'p2be_freeze', *EMBEDDING_DEFAULTS)  # no use without a learned table

# a flag that is set -> the flags that have no effect beside it
_REPLACES = {
    'no_aug': ('train_crop_mode', 'aa', 'reprob', 'p2be_augmix', 'p2be_crop_padding', 'aug_splits', 'jsd_loss'),
    'p2be_adversarial': ('p2be_augmix', 'aug_splits', 'jsd_loss'),
    'p2be_crop_padding': ('train_crop_mode', 'scale', 'ratio', 'vflip', 'train_interpolation'),
    'p2be_augmix': ('aa', 'color_jitter'),
    'data_on_device': ('worker_seeding',),
    'lr': ('lr_base', 'lr_base_size', 'lr_base_scale'),
    'p2be_freeze': TRAINED_ONLY,
    'pretrained': ('p2be_embedding', 'p2be_init'),
    'initial_checkpoint': ('p2be_embedding', 'p2be_init'),
    'p2be_embedding': ('p2be_init',),
}
# a flag that is not set -> the flags that refine it
_REFINES = {
    'p2be_adversarial': ('p2be_attack_eps', 'p2be_attack_steps', 'p2be_attack_step_size'),
    'amp': ('amp_dtype',),
    'p2be_augmix': ('p2be_augmix_device',),
    'pretrained': ('pretrained_path',),
    'model_ema': ('model_ema_decay', 'model_ema_warmup'),
    'reprob': ('remode', 'recount'),
}
# of two that exclude each other, the command line's wins over the recipe's, whichever that is
_ALTERNATIVES = (('p2be_augmix', 'aa'), ('p2be_embedding', 'p2be_init'), ('lr', 'lr_base'))
_REMEDIES = {
    'model': 'leave it out, or pick a model with a learned table: its name ends in _p2be',
    'opt': 'leave it out, or use --opt sgdp2be or adamwp2be, which have a rule for the table',
}
_SIGNED = ('mean', 'decay_rate')  # flags of numbers that may be negative
_SHARES = ('model_ema_decay', 'hflip', 'vflip', 'reprob', 'smoothing', 'drop', 'drop_path', 'crop_pct')
_POSITIVE = ['batch_size', 'validation_batch_size', 'grad_accum_steps', 'epochs', 'val_interval', 'log_interval']
_POSITIVE += ['p2be_attack_eps', 'p2be_attack_steps', 'dist_timeout']
_LEAST = {**dict.fromkeys(_POSITIVE, 1), 'max_bad_samples': 0}


def flag_name(dest: str) -> str:
    """Return the flag of an attribute of the parsed arguments."""
    return '--' + dest.replace('_', '-')


def reader(args: argparse.Namespace) -> str:
    """Return the timm reader that --dataset names, empty for an image folder or a tar file."""
    prefix, slash, _ = args.dataset.partition('/')
    return prefix.lower() if slash else ''


def settle_conflicts(
    parser: argparse.ArgumentParser, args: argparse.Namespace, explicit: set[str], recipe: set[str]
) -> list[str]:
    """Refuse flags of the command line without effect, and put those of a recipe back to their defaults.

    `explicit` and `recipe` name the flags that these set; `args` and `explicit` are changed in place: flags of a
    learned table get their defaults where they apply. Returns what was put back, for the log.
    """
    _adopt_model_kwargs(args, explicit)
    _check_values(parser, args)
    dropped: dict[str, str] = {}
    void = set()
    for cause, name in _void(args):
        if (cause, name) in _ALTERNATIVES and name in explicit and cause not in explicit:
            cause, name = name, cause
        void.add(name)
        if getattr(args, name) == parser.get_default(name) and name not in explicit:  # an args.yaml sets all
            continue
        value = getattr(args, cause)
        shown = f'{flag_name(cause)} {value}' if isinstance(value, str) and value else flag_name(cause)
        circumstance = f'{"with" if _is_set(args, cause) else "without"} {shown}'
        if name in explicit:
            remedy = _REMEDIES.get(cause, 'leave one of them out')
            parser.error(f'{flag_name(name)} has no effect {circumstance}; {remedy}')
        if name in recipe:
            dropped[circumstance] = f'{dropped.get(circumstance, "")} {name}'
        setattr(args, name, parser.get_default(name))
    for name in EMBEDDING_DEFAULTS.keys() - void:
        if getattr(args, name) is None:
            setattr(args, name, EMBEDDING_DEFAULTS[name])
    _check_views(parser, args)
    if args.data_on_device:
        _check_data_on_device(parser, args)
    if not args.val_split:
        args.eval_metric = 'loss'
    return [f"Of the recipe's flags, these have no effect {why}:{names}." for why, names in dropped.items()]


def _adopt_model_kwargs(args: argparse.Namespace, explicit: set[str]) -> None:
    """Turn what --model-kwargs says about the table, as for timm's own train.py, into the flags that say the same."""
    for key, name in (('embedding', 'p2be_embedding'), ('freeze_embedding', 'p2be_freeze')):
        if key in args.model_kwargs and name not in explicit:
            value = args.model_kwargs[key]
            setattr(args, name, str(value) if key == 'embedding' and value is not None else value)
            if 'model_kwargs' in explicit:
                explicit.add(name)
    frozen = args.model_kwargs.get('freeze_embedding')
    args.model_kwargs = {k: v for k, v in args.model_kwargs.items() if k not in ('embedding', 'freeze_embedding')}
    if _architecture(args)[1].get('freeze_embedding'):  # a model that was saved frozen
        args.p2be_freeze = True
    if names_table(args.model) and args.pretrained and not args.pretrained_path and frozen is None:
        args.p2be_freeze = True  # as the model does that this names


def _is_set(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False and value != ''


def _void(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield (a flag, another one that has no effect because of its value)."""
    if not has_learned_table(args):
        yield from (('model', name) for name in _LEARNED)
    if not args.opt.lower().endswith('p2be'):
        yield from (('opt', name) for name in _OPTIMIZER)
    if 'embedding_init' in args.model_kwargs:
        yield 'model_kwargs', 'p2be_init'
    for cause, names in _REPLACES.items():
        for name in names:
            if _is_set(args, cause) and (getattr(args, name) or name.startswith('p2be')):
                yield cause, name
    for cause, names in _REFINES.items():
        if not getattr(args, cause):
            yield from ((cause, name) for name in names)
    if not args.jsd_loss and args.p2be_adversarial != 'contrain':
        yield 'jsd_loss', 'p2be_alpha'
    if args.p2be_sched in ('constant', 'follow'):
        yield 'p2be_sched', 'p2be_min_lr'


def _architecture(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of --model, those of a saved one from its config."""
    if ':' not in args.model:
        return split_model_name_tag(args.model)[0], args.model_kwargs
    with asking(args.model):
        kwargs = resolve_model_input_args(args.model, **args.model_kwargs)
    return kwargs['model_name'], kwargs


def has_learned_table(args: argparse.Namespace) -> bool:
    """Return whether --model has one, by its name: the model is not there yet."""
    name, kwargs = _architecture(args)
    return kwargs.get('encoding', 'p2be') == 'p2be' if name == 'encoded' else name.endswith('_p2be')


def _check_values(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'{flag_name(name)} {value}: must be at least {least}')
    for name, value in vars(args).items():
        most = 1.0 if name in _SHARES else math.inf
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, float) or (math.isfinite(number) and (0 <= number <= most or name in _SIGNED)):
                continue
            allowed = 'a share, from 0 to 1' if name in _SHARES else f'finite{"" if name in _SIGNED else ", from 0 on"}'
            parser.error(f'{flag_name(name)} {number}: must be {allowed}')
    if args.overwrite and args.resume == 'auto':
        parser.error('--overwrite deletes the checkpoints that --resume auto goes on from; leave out one of them')
    if not args.experiment and (args.overwrite or args.resume == 'auto'):
        flag = '--overwrite' if args.overwrite else '--resume auto'
        parser.error(f'{flag} is about the checkpoints in a folder that is there; name the folder by --experiment')
    if args.p2be_embedding is not None and not args.p2be_embedding.strip():
        parser.error("--p2be-embedding '' names no table: give a folder or org/name[@revision], or leave the flag out")
    for name in ('amp', 'p2be_adversarial'):
        if getattr(args, name) and args.model_dtype not in (None, 'float32'):
            parser.error(f'{flag_name(name)} needs float32 weights, got --model-dtype {args.model_dtype}')
    kind = reader(args)
    if args.dataset and kind not in DATASETS:
        known = ', '.join(f'{name}/...' for name in DATASETS)
        parser.error(f'--dataset {args.dataset}: expected one of {known}; an image folder needs --data-dir only')
    if not args.data_dir and kind in ('', 'torch'):
        parser.error('--data-dir is missing: an image folder with train/ and validation/, or see --dataset')
    if args.data_dir and kind in ('hfds', 'hfids'):
        folder = Path(args.dataset.partition('/')[2])
        if folder.is_dir() and Path(args.data_dir).resolve().is_relative_to(folder.resolve()):
            parser.error(
                f'--data-dir {args.data_dir} lies in the data set --dataset {args.dataset}: for {kind}/ it is the '
                'folder of the cache, which would be read as data the next time. Leave --data-dir out, or name '
                'another folder.'
            )


def _check_views(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse views that no loss compares, and losses without views."""
    if args.aug_splits == 1 or args.aug_splits < 0:
        parser.error(f'--aug-splits {args.aug_splits}: a clean and an augmented view make at least 2; the paper has 3')
    if args.jsd_loss != (args.aug_splits > 1):
        parser.error('--jsd-loss and --aug-splits N go together: N views, one Jensen-Shannon term over them')
    if args.aug_splits and args.p2be_augmix is None and not args.aa and not args.color_jitter:
        parser.error('--aug-splits: nothing makes the views differ; add --p2be-augmix 3 (or --aa, --color-jitter)')


def _check_data_on_device(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse data that cannot be held, and augmentation that only loaders compute."""
    if reader(args) in ('hfids', 'wds'):
        parser.error(f'--data-on-device: --dataset {args.dataset} is a stream; read it by hfds/ or from a folder')
    if args.p2be_augmix_device == 'workers':
        parser.error('--data-on-device has no workers to augment; leave out --p2be-augmix-device workers')
    if args.p2be_crop_padding is None:
        parser.error('--data-on-device flips and crops by --p2be-crop-padding only: 4 for CIFAR, 0 for no crop')
    if args.p2be_augmix is None and (by_image := [name for name in ('aa', 'color_jitter') if getattr(args, name)]):
        flags = ' and '.join(f'{flag_name(name)} {getattr(args, name)}' for name in by_image)
        parser.error(f'--data-on-device augments by --p2be-augmix only, not by {flags}; set --color-jitter 0, no --aa')
