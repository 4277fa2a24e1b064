"""The flags of a learned table: their defaults, and which of them apply to a model."""

import argparse
from typing import Any

from conflicts import flag_name

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
_OPTIMIZER_FLAGS = ('p2be_lr', 'p2be_betas', 'p2be_weight_decay', 'p2be_sched', 'p2be_min_lr')


def resolve_embedding_flags(args: argparse.Namespace, explicit: set[str], trainable: bool) -> list[str]:
    """Fill in the flags of the learned table, in place, or clear them where there is none to train.

    Args:
        args: parsed flags.
        explicit: names of the flags given on the command line.
        trainable: whether the model has a learned table that is not frozen.

    Returns:
        Names of recipe flags that do not apply to this model.

    Raises:
        ValueError: a flag of the table on the command line, without a table or without an optimizer that has a rule
            for it.
    """
    two_rules = args.opt.lower().endswith('p2be')
    inapplicable = [
        name for name in EMBEDDING_DEFAULTS if not trainable or (name in _OPTIMIZER_FLAGS and not two_rules)
    ]
    if wrong := ', '.join(flag_name(name) for name in inapplicable if name in explicit):
        raise ValueError(
            f'{wrong}: {args.model} has no learned table to train; leave the flags out, or pick a model whose name '
            'ends in _p2be.'
            if not trainable
            else f'{wrong}: --opt {args.opt} has one rule for all parameters; use --opt sgdp2be or adamwp2be.'
        )
    dropped = [name for name in inapplicable if getattr(args, name) is not None]
    for name in inapplicable:
        setattr(args, name, None)
    for name, default in EMBEDDING_DEFAULTS.items():
        without = name == 'p2be_min_lr' and args.p2be_sched != 'cosine'
        if name not in inapplicable and not without and getattr(args, name) is None:
            setattr(args, name, default)
    return dropped
