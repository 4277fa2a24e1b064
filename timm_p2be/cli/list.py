"""`timm-p2be list`: what is shipped, what is in the Hub cache, or what a namespace of the Hub offers."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from timm_p2be.cli.interruption import run_long
from timm_p2be.hub.browsing import MAX_REMOTE, TAG, Entry, cached_entries, remote_entries, shipped_entries
from timm_p2be.hub.training_record import counts_of, is_on_training_images, part_of

_EPILOG = f"""\
Without --remote: models and tables that ship with timm-p2be (the * of a table stands for any network), and models and
embeddings in the Hub cache. With it: the repositories of NAMESPACE that carry the tag {TAG}, at most {MAX_REMOTE};
only their config.json is downloaded. M is the code length, ERROR the error on clean test images in percent, as the
repository states it; CODES how many of the 256 codes of a learned table differ, UNLIKE the share of its bits that the
thermometer code has otherwise.

examples:
  timm-p2be list
  timm-p2be list --remote org --json
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `list` and return the command."""
    parser.epilog = _EPILOG
    parser.add_argument('--remote', metavar='NAMESPACE', help='a user or an organization of the Hub')
    parser.add_argument('--json', action='store_true', help='for programs: everything known of each, as JSON')

    return lambda args: run_long(parser, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    entries = [*shipped_entries(), *cached_entries()] if args.remote is None else remote_entries(args.remote)
    if args.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    elif entries:  # without --remote what is shipped
        print(_table(entries))
    else:
        print(
            f'Nothing found: {args.remote} has no repository with the tag {TAG} that you may see, or is no name of the '
            'Hub. Check the spelling; for private repositories log in with hf auth login.'
        )
    return 0


_HEADS = ('WHERE', 'NAME', 'KIND', 'ENCODING', 'M', 'DATA SET', 'ERROR', 'CODES', 'UNLIKE', 'SIZE', 'REVISION', 'TAGS')
_TO_THE_RIGHT = ('M', 'ERROR', 'CODES', 'UNLIKE', 'SIZE')


def _table(entries: Sequence[Entry]) -> str:
    """Return aligned columns, without those that are empty."""
    rows = [_cells(entry) for entry in entries]
    columns = [column for column in zip(_HEADS, *rows, strict=True) if any(column[1:])]
    lines: list[list[str]] = [[] for _ in range(1 + len(rows))]
    for column in columns:
        width = max(map(len, column))
        for line, cell in zip(lines, column, strict=True):
            line.append(cell.rjust(width) if column[0] in _TO_THE_RIGHT else cell.ljust(width))
    return '\n'.join('  '.join(line).rstrip() for line in lines)


def _cells(entry: Entry) -> tuple[str, ...]:
    revision = ' '.join([*([entry.commit[:12]] if entry.commit else []), *entry.revisions])
    found, known = entry.contents, ('?', '', '', '', '', '', '')
    if found is not None:
        bits = '' if found.num_bits is None else str(found.num_bits)
        error = part_of(found.provenance, 'results', 'clean', 'error')
        dataset = part_of(found.provenance, 'dataset', 'name') or ''
        codes = counts_of(part_of(found.provenance, 'results', 'codes'))
        unlike = f'{100 * codes["unlike_thermometer"] / max(codes["bits"], 1):.1f} %' if codes else ''
        distinct = str(codes['distinct']) if codes else ''
        error = '' if error is None or is_on_training_images(found.provenance) else f'{error:.2f}'
        known = (found.kind, found.encoding, bits, dataset, error, distinct, unlike)
    tags = entry.problem or ' '.join(tag for tag in entry.tags if tag != TAG)
    size = '' if entry.size is None else f'{entry.size / 1e6:.2f} MB'
    cells = (entry.where, entry.name, *known, size, revision, tags)
    # what a stranger wrote must not move the cursor
    return tuple(''.join(char if char.isprintable() else '?' for char in cell) for cell in cells)
