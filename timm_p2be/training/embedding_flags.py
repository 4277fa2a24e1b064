"""Where a learned table comes from: the Hub, at one commit, or the checkpoint that a run goes on from."""

import argparse

from timm_p2be.checkpoints import Checkpoint
from timm_p2be.encodings.codes import LEVELS
from timm_p2be.files import MAX_JSON_BYTES
from timm_p2be.hub.fetch import fetch, local_folder, resolved_commit
from timm_p2be.hub.repository import FILES


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


def adopt_table(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Take over what the run of --resume recorded of its table: nothing is fetched, the table is in the checkpoint.

    Raises:
        ValueError: the flags say otherwise.
    """
    saved = checkpoint.args
    kwargs = saved.get('model_kwargs') or {}
    was = saved.get('p2be_embedding') or kwargs.get('embedding')
    if args.p2be_embedding and _hub_name(args.p2be_embedding) != _hub_name(was or ''):
        raise ValueError(
            f'--p2be-embedding {args.p2be_embedding}: --resume goes on with the table of {args.resume}, which '
            + (f'started from {was}. Leave the flag as it was.' if was else 'started afresh. Leave the flag out.')
        )
    args.p2be_embedding = was
    if was:
        args.p2be_init = None
    tables = [tensor for name, tensor in checkpoint.state_dict.items() if name.endswith('.embedding.weight')]
    if was and tables and len(tables[0]) == LEVELS:
        args.model_kwargs = {'num_bits': tables[0].shape[1], **args.model_kwargs}
