"""Refuses combinations of flags in which one would have no effect: no flag is parsed and ignored."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from timm.optim import get_optimizer_info

import timm_p2be  # noqa: F401  registers the optimizers
from timm_p2be.training.flags import DATASETS

_CROP_FLAGS = ('train_crop_mode', 'scale', 'ratio', 'vflip', 'train_interpolation')
_SCHEDULES_WITH = {
    'decay_milestones': ('multistep',),
    'decay_epochs': ('step', 'wsd', 'rsqrt'),
    'decay_rate': ('step', 'multistep', 'poly'),
    'min_lr': ('cosine', 'tanh', 'poly', 'wsd', 'rsqrt'),
    'cooldown_epochs': ('cosine', 'tanh', 'poly', 'wsd', 'rsqrt'),
}
_AT_LEAST = {
    **dict.fromkeys(('batch_size', 'validation_batch_size', 'grad_accum_steps', 'epochs', 'lr_base_size'), 1),
    **dict.fromkeys(('val_interval', 'log_interval', 'checkpoint_hist', 'recount', 'num_classes', 'img_size'), 1),
    **dict.fromkeys(('train_num_samples', 'val_num_samples', 'in_chans'), 1),
    **dict.fromkeys(('workers', 'seed', 'start_epoch', 'recovery_interval', 'warmup_epochs', 'cooldown_epochs'), 0),
}
TABLE_RULE = ('p2be_lr', 'p2be_betas', 'p2be_weight_decay', 'p2be_sched', 'p2be_min_lr')  # of the optimizer
# arguments of the models that have a flag of their own here
_MODEL_KWARGS = {'embedding': 'p2be_embedding', 'freeze_embedding': 'p2be_freeze'}
_WEIGHTS = ('pretrained', 'initial_checkpoint')  # what a network can start from; --resume goes on with its own
_PROBABILITIES = ('hflip', 'vflip', 'reprob', 'smoothing', 'drop', 'drop_path')

Rule = tuple[str, tuple[str, ...]]


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
    """Refuse flags without effect; where the command line voids a recipe's flag, put that back to its default.

    Args:
        parser: reports errors.
        args: parsed flags, changed in place.
        explicit: names of the flags given on the command line.
        recipe: names of the flags that the recipe sets.

    Returns:
        What was put back, for the log.
    """
    _adopt_model_kwargs(parser, args, explicit if 'model_kwargs' in explicit else recipe, explicit)
    _check_values(parser, args)
    dropped: dict[str, str] = {}
    for cause, names in _rules(args, explicit):
        for name in names:
            by_recipe = name in recipe and getattr(args, name) != parser.get_default(name)  # an args.yaml sets all
            if not (name in explicit or by_recipe) or not _claims_effect(args, name):
                continue
            if name in explicit or cause not in explicit:
                owned = cause in _WEIGHTS and name == 'p2be_embedding'
                reason = ': those weights bring their own table' if owned else ''
                parser.error(f'{flag_name(name)} has no effect {_circumstance(args, cause)}{reason}')
            dropped[cause] = f'{dropped.get(cause, "")} {name}'
            setattr(args, name, parser.get_default(name))
    _check_views(parser, args)
    if not args.val_split:
        args.eval_metric = 'loss'
    return [f"Of the recipe's flags, these have no effect {_circumstance(args, c)}:{n}." for c, n in dropped.items()]


def _adopt_model_kwargs(
    parser: argparse.ArgumentParser, args: argparse.Namespace, origin: set[str], explicit: set[str]
) -> None:
    """Turn what --model-kwargs says about the table into the flags that say the same, so that one rule serves both.

    `origin` are the names of the flags from where --model-kwargs came from, command line or recipe.
    """
    for key in args.model_kwargs.keys() & _MODEL_KWARGS.keys():
        name, value = _MODEL_KWARGS[key], args.model_kwargs[key]
        if key == 'freeze_embedding' and not isinstance(value, bool):
            parser.error(f'--model-kwargs {key}={value}: must be True or False')
        if key == 'embedding' and value is not None:  # None is no table
            value = str(value)  # a folder named 2024 was read as a number
        if name in origin and value != getattr(args, name):
            parser.error(f'{flag_name(name)} contradicts --model-kwargs {key}={value}')
        if name not in explicit:
            setattr(args, name, value)
            origin.add(name)
    args.model_kwargs = {key: value for key, value in args.model_kwargs.items() if key not in _MODEL_KWARGS}


def _claims_effect(args: argparse.Namespace, name: str) -> bool:
    """Return whether a value asks for something; 0 and empty mostly switch off."""
    value = getattr(args, name)
    return bool(value) or (name in ('p2be_augmix', 'p2be_crop_padding') and value is not None)


def _circumstance(args: argparse.Namespace, cause: str) -> str:
    value = getattr(args, cause)
    if value is None or value is False or value == '':
        return f'without {flag_name(cause)}'
    return f'with {flag_name(cause)}' + ('' if value is True else f' {value}')


def _rules(args: argparse.Namespace, explicit: set[str]) -> Iterator[Rule]:
    """Yield (a flag, the flags that have no effect because of its value)."""
    yield from _data_rules(args)
    yield from _augmentation_rules(args, explicit)
    yield from _optimizer_rules(args)
    yield from _table_rules(args, explicit)
    if args.initial_checkpoint:
        yield 'initial_checkpoint', ('pretrained', 'pretrained_path')
    if args.input_size:
        yield 'input_size', ('img_size', 'in_chans')
    if not args.amp:
        yield 'amp', ('amp_dtype',)
    for switch, names in (
        ('pretrained', ('pretrained_path',)),
        ('resume', ('no_resume_opt',)),
        ('model_ema', ('model_ema_decay', 'model_ema_warmup')),
        ('torchcompile', ('torchcompile_mode',)),
    ):
        if not getattr(args, switch):
            yield switch, names


def _data_rules(args: argparse.Namespace) -> Iterator[Rule]:
    kind = reader(args)
    if kind in ('', 'torch', 'hfds'):
        yield 'dataset', ('train_num_samples', 'val_num_samples')
    if kind not in ('torch', 'hfids'):
        yield 'dataset', ('dataset_download',)
    if kind == 'torch':
        yield 'dataset', ('class_map', 'input_img_mode', 'input_key', 'target_key')
    if kind == '':
        yield 'dataset', ('target_key',)
    if not args.val_split:
        yield 'val_split', ('validation_batch_size', 'val_num_samples', 'crop_pct')
        if args.eval_metric != 'loss':
            yield 'val_split', ('eval_metric',)


def _augmentation_rules(args: argparse.Namespace, explicit: set[str]) -> Iterator[Rule]:
    if args.no_aug:
        yield 'no_aug', (*_CROP_FLAGS, 'hflip', 'color_jitter', 'aa', 'reprob', 'remode', 'recount')
        yield 'no_aug', ('p2be_augmix', 'p2be_crop_padding', 'aug_splits', 'jsd_loss', 'p2be_alpha')
    if args.p2be_crop_padding is not None:
        yield 'p2be_crop_padding', _CROP_FLAGS
    if args.p2be_augmix is not None and args.aa:
        replaced = 'aa' in explicit and 'p2be_augmix' not in explicit
        yield ('aa', ('p2be_augmix',)) if replaced else ('p2be_augmix', ('aa',))
    if args.p2be_augmix is not None:
        yield 'p2be_augmix', ('color_jitter',)
    if args.aa and '3a' not in args.aa:
        yield 'aa', ('color_jitter',)
    if not args.reprob:
        yield 'reprob', ('remode', 'recount')
    if not args.jsd_loss:
        yield 'jsd_loss', ('p2be_alpha',)


def _optimizer_rules(args: argparse.Namespace) -> Iterator[Rule]:
    info = get_optimizer_info(args.opt.lower().rpartition('_')[2])
    if not info.has_eps:
        yield 'opt', ('opt_eps',)
    if not info.has_betas:
        yield 'opt', ('opt_betas',)
    if not info.has_momentum:
        yield 'opt', ('momentum',)
    if args.clip_grad is None:
        yield 'clip_grad', ('clip_mode',)
    if args.lr is not None:
        yield 'lr', ('lr_base', 'lr_base_size', 'lr_base_scale')
    for name, schedules in _SCHEDULES_WITH.items():
        if args.sched not in schedules:
            yield 'sched', (name,)
    if args.sched == 'none':
        yield 'sched', ('warmup_epochs', 'warmup_lr', 'warmup_prefix', 'sched_on_updates')
    if not args.warmup_epochs:
        yield 'warmup_epochs', ('warmup_lr', 'warmup_prefix')


def _table_rules(args: argparse.Namespace, explicit: set[str]) -> Iterator[Rule]:
    if args.p2be_freeze:
        yield 'p2be_freeze', (*TABLE_RULE, 'p2be_smoothness', 'p2be_reduction')
    if args.p2be_sched in ('constant', 'follow'):
        yield 'p2be_sched', ('p2be_min_lr',)
    if args.p2be_smoothness == 0:
        yield 'p2be_smoothness', ('p2be_reduction',)
    for source in _WEIGHTS:
        if getattr(args, source):
            yield source, ('p2be_embedding',)
    if args.p2be_embedding and args.p2be_init:
        replaced = 'p2be_init' in explicit and 'p2be_embedding' not in explicit
        yield ('p2be_init', ('p2be_embedding',)) if replaced else ('p2be_embedding', ('p2be_init',))


def _check_values(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse values out of range, and data that cannot be meant."""
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'{flag_name(name)} {value}: must be at least {least}')
    for name in _PROBABILITIES:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            parser.error(f'{flag_name(name)} {value}: must lie in 0..1')
    try:
        get_optimizer_info(args.opt.lower().rpartition('_')[2])
    except ValueError:
        parser.error(f'--opt {args.opt}: unknown optimizer; timm.optim.list_optimizers() has the names')
    if args.p2be_embedding is not None and not args.p2be_embedding.strip():
        parser.error("--p2be-embedding '' names no table: give a folder or org/name[@revision], or leave the flag out")
    if args.amp and args.model_dtype not in (None, 'float32'):
        parser.error(f'--amp needs float32 weights, got --model-dtype {args.model_dtype}')
    if args.torchcompile not in (None, 'inductor') and args.torchcompile_mode:
        parser.error(f'--torchcompile-mode is a setting of inductor, not of --torchcompile {args.torchcompile}')
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
