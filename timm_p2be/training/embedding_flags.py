"""The flags of a learned table: their defaults, which of them apply to a model, and where the table comes from."""

import argparse
import logging
from typing import Any

from timm.models import resolve_model_input_args, split_model_name_tag
from timm.utils import is_primary

from timm_p2be.checkpoints import Checkpoint
from timm_p2be.encodings.codes import LEVELS
from timm_p2be.files import MAX_JSON_BYTES
from timm_p2be.hub.fetch import fetch, local_folder, resolved_commit
from timm_p2be.hub.repository import FILES
from timm_p2be.training.conflicts import TABLE_RULE, flag_name

_logger = logging.getLogger('train')

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


def resolve_embedding_flags(args: argparse.Namespace, explicit: set[str], learned: bool, trainable: bool) -> None:
    """Fill in the flags of the learned table, in place, or clear them where they do not apply.

    Raises ValueError if one of the command line, named in `explicit`, does not apply.
    """
    reasons: dict[str, str] = {}
    if not learned:
        reasons = dict.fromkeys(EMBEDDING_DEFAULTS, _no_table(args))
    elif not trainable:
        reasons = dict.fromkeys(TRAINED_ONLY, f'the table of {args.model} is frozen; leave the flags out.')
    elif not args.opt.lower().endswith('p2be'):
        one_rule = f'--opt {args.opt} has one rule for all parameters; use --opt sgdp2be or adamwp2be.'
        reasons = dict.fromkeys(TABLE_RULE, one_rule)
    if learned and args.p2be_embedding:
        reasons['p2be_init'] = f'the table is that of --p2be-embedding {args.p2be_embedding}; leave the flag out.'
    if wrong := [name for name in reasons if name in explicit]:
        raise ValueError(f'{", ".join(map(flag_name, wrong))}: {reasons[wrong[0]]}')
    dropped = [name for name in reasons if getattr(args, name) is not None]
    if dropped and is_primary(args):
        _logger.info(f"{args.model} trains no table with --opt {args.opt}: the recipe's {dropped} do not apply.")
    for name, default in EMBEDDING_DEFAULTS.items():
        if name in reasons or (name == 'p2be_min_lr' and args.p2be_sched != 'cosine'):
            setattr(args, name, None)
        elif getattr(args, name) is None:
            setattr(args, name, default)


def _no_table(args: argparse.Namespace) -> str:
    return f'{args.model} has no learned table; leave the flags out, or pick a model whose name ends in _p2be.'


def settle_source(args: argparse.Namespace, explicit: set[str], checkpoint: Checkpoint | None) -> None:
    """Settle --p2be-embedding and --p2be-freeze before the model is there.

    A Hub id is fetched and pinned to its commit. On --resume nothing is fetched: the table is in the checkpoint, and
    what its run recorded of it is taken over.

    Raises:
        ValueError: the model takes no table, the source cannot be fetched, or the checkpoint's run had another one.
    """
    if (args.p2be_embedding or args.p2be_freeze) and not _takes_table(args):
        given = [name for name in ('p2be_embedding', 'p2be_freeze') if getattr(args, name)]
        if wrong := ', '.join(flag_name(name) for name in given if name in explicit):
            raise ValueError(f'{wrong}: {_no_table(args)}')
        args.p2be_embedding, args.p2be_freeze = None, False
        if is_primary(args):
            _logger.info(f"{args.model} has no learned table: the recipe's {given} do not apply.")
    if checkpoint is not None:
        _adopt_table(args, checkpoint)
    elif args.p2be_embedding:
        args.p2be_embedding = pinned(args.p2be_embedding)


def pinned(source: str) -> str:
    """Return a Hub id as 'org/name@commit' with the commit that its revision is now, and a folder as it is.

    Raises:
        ValueError: there is no such table, or it cannot be fetched.
    """
    folder = fetch(source, FILES[:1], max_bytes=MAX_JSON_BYTES)
    # a folder may be one in the Hub's cache, and is taken as it is all the same
    return source if local_folder(source) is not None else f'{_hub_name(source)}@{resolved_commit(folder)}'


def _hub_name(source: str) -> str:
    """Return the repository of a Hub id without prefix and revision."""
    return source.removeprefix('hf-hub:').partition('@')[0]


def _takes_table(args: argparse.Namespace) -> bool:
    """Return whether --model has a learned table, by its name: the model is not there yet."""
    arch, kwargs = split_model_name_tag(args.model)[0], args.model_kwargs
    if ':' in args.model:  # a saved model: its config names the architecture
        kwargs = resolve_model_input_args(args.model, **args.model_kwargs)
        arch = kwargs['model_name']
    return kwargs.get('encoding', 'p2be') == 'p2be' if arch == 'encoded' else arch.endswith('_p2be')


def _adopt_table(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Take over what the run of --resume recorded of its table, or raise ValueError if the flags say otherwise."""
    saved = checkpoint.args
    kwargs = saved.get('model_kwargs') or {}
    was = saved.get('p2be_embedding') or kwargs.get('embedding')
    if args.p2be_embedding and _hub_name(args.p2be_embedding) != _hub_name(was or ''):
        raise ValueError(
            f'--p2be-embedding {args.p2be_embedding}: --resume goes on with the table of {args.resume}, which '
            + (f'started from {was}. Leave the flag as it was.' if was else 'started afresh. Leave the flag out.')
        )
    frozen = bool(saved.get('p2be_freeze') or kwargs.get('freeze_embedding'))
    if frozen != args.p2be_freeze and not args.no_resume_opt:
        raise ValueError(
            f'--resume {args.resume}: its run '
            + ('froze its table; add --p2be-freeze' if frozen else 'trained its table; leave out --p2be-freeze')
            + ', or start the optimizer afresh by --no-resume-opt.'
        )
    args.p2be_embedding = was
    tables = [tensor for name, tensor in checkpoint.state_dict.items() if name.endswith('.embedding.weight')]
    if was and tables and len(tables[0]) == LEVELS:
        args.model_kwargs = {'num_bits': tables[0].shape[1], **args.model_kwargs}
