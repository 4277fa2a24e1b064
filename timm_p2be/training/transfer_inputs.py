"""What transfer.py is given: targets with their flags of train.py, and tables, pinned for the whole experiment."""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_p2be import PixelEmbedding
from timm_p2be.encodings.table_file import codes_sha256
from timm_p2be.files import write_json
from timm_p2be.training.arguments import flag_groups, parse_args
from timm_p2be.training.conflicts import flag_name
from timm_p2be.training.embedding_flags import TRAINED_ONLY, pinned

MODES = ('learned', 'fixed')
OWN = 'own'
_RESERVED = ('--model', '--seed', '--output', '--experiment', '--resume', '--p2be-embedding', '--p2be-freeze')
_EPILOG = """\
--target takes a name and the flags of train.py, in quotes: a recipe and where the data are, by any reader of timm.
Flags of the table go only to the runs that they apply to, be they from FLAGS or from a recipe: --p2be-init to those of
the table 'own'; --p2be-lr, -min-lr, -sched, -betas, -weight-decay, -smoothness and -reduction to the learned ones.
A Hub id means its commit of the first call, for later calls with the same --output too.

example, after `timm-p2be publish RUN --embedding-only --dry-run tables/imagenet ...` for each source:
  python train_scripts/transfer.py --model wrn40_2_p2be --seeds 1 2 3 --output output/transfer \\
      --table imagenet=tables/imagenet cifar10=someone/p2be-m64-cifar10@v1 \\
      --target 'cifar10: -c train_scripts/recipes/cifar10.yaml --data-dir data' \\
               'cifar100: -c train_scripts/recipes/cifar100.yaml --data-dir data --p2be-lr 2e-4'
"""


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of transfer.py."""
    parser = argparse.ArgumentParser(
        prog='transfer.py',
        description=description,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--target', nargs='+', required=True, metavar="'NAME: FLAGS'", help='data sets to train on')
    parser.add_argument('--table', nargs='+', default=[], metavar='NAME=ID', help='folders or Hub ids of tables')
    parser.add_argument('--model', default='wrn40_2_p2be', help='P2BE network of every run (default: %(default)s)')
    parser.add_argument('--mode', nargs='+', choices=MODES, default=list(MODES), help='default: both')
    parser.add_argument('--seeds', nargs='+', type=int, default=[42], metavar='S', help='default: 42')
    parser.add_argument('--output', type=Path, default=Path('output/transfer'), help='default: %(default)s')
    return parser


def parse_targets(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of train.py for every target, given as 'NAME: FLAGS'.

    Raises:
        ValueError: no name, a name twice, or a flag that this script sets.
    """
    targets: dict[str, list[str]] = {}
    for text in texts:
        name, colon, flags = text.partition(':')
        words = shlex.split(flags)
        name = _name(name, text) if colon else ''
        if not name or not words:
            raise ValueError(f"Got --target {text!r}; write 'NAME: FLAGS', for example 'cifar10: -c RECIPE ...'.")
        if name in targets:
            raise ValueError(f'Two targets are called {name!r}; give each a name of its own.')
        if taken := sorted({flag for flag, _, _ in flag_groups(words)} & set(_RESERVED)):
            raise ValueError(f'Target {name}: {", ".join(taken)} is set by transfer.py; leave it out of FLAGS.')
        targets[name] = words
    return targets


def flags_that_apply(words: Sequence[str], own: bool, learned: bool) -> list[str]:
    """Return the flags of a target without those that a run does not take.

    Args:
        words: flags of the target.
        own: whether the run starts its table itself, so that --p2be-init applies.
        learned: whether it trains its table, so that the flags of its optimizer and its loss apply.
    """
    left_out = {flag_name(name) for name in (*(() if own else ('p2be_init',)), *(() if learned else TRAINED_ONLY))}
    return [word for flag, _, group in flag_groups(words) if flag not in left_out for word in group]


def check_flags(target: str, words: Sequence[str]) -> None:
    """Refuse flags of a run that train.py would refuse, before any run is started.

    Args:
        target: its name, for the message.
        words: all flags of train.py of a run.

    Raises:
        ValueError: wrong flags, or a recipe that says itself which table is used, or how.
    """
    try:
        args = parse_args(words).args
    except SystemExit as error:
        raise ValueError(f'target {target}: train.py refuses its flags for the reason above.') from error
    set_here = ('--p2be-embedding' in words, '--p2be-freeze' in words)
    if (bool(args.p2be_embedding), args.p2be_freeze) != set_here:
        raise ValueError(
            f'target {target}: its recipe or --model-kwargs names a table or freezes it. Leave that out: transfer.py '
            'sets it by --table and --mode.'
        )
    if not args.val_split:
        raise ValueError(f'target {target}: no accuracy would be measured; give it a --val-split.')


@dataclass
class Table:
    """A table to transfer.

    Attributes:
        source: folder or Hub id as given.
        pinned: the folder, or 'org/name@commit'.
        embedding: the table itself.
    """

    source: str
    pinned: str
    embedding: PixelEmbedding

    @property
    def digest(self) -> str:
        """SHA-256 of the codes."""
        return codes_sha256(self.embedding.codes())

    def record(self) -> dict[str, Any]:
        """Return what transfer.json says of the table."""
        names = {'source': self.source, 'pinned': self.pinned}
        return {**names, 'codes_sha256': self.digest, 'provenance': self.embedding.provenance}


def load_tables(texts: Sequence[str], file: Path) -> dict[str, Table]:
    """Return the tables given as NAME=ID, those of the Hub at one commit for the whole experiment.

    Args:
        texts: arguments of --table.
        file: tables.json among the runs, where earlier calls recorded theirs.

    Raises:
        ValueError: a bad name, a source that cannot be loaded, or another table than the recorded one.
    """
    known, tables = _recorded(file), {}
    for name, source in parse_tables(texts).items():
        earlier = known[name] if name in known and any(file.parent.glob(f'*-{name}-*')) else {}  # of runs already begun
        same = earlier.get('source') == source
        place = earlier['pinned'] if same else pinned(source)
        tables[name] = Table(source, place, PixelEmbedding.from_pretrained(place))
        if earlier and not (same and earlier['codes_sha256'] == tables[name].digest):
            raise ValueError(
                f'Table {name!r}: runs in {file.parent} have another table of this name, from {earlier["source"]}; '
                'choose another name or another --output.'
            )
    return tables


def record_tables(tables: dict[str, Table], file: Path) -> None:
    """Bring the record that `load_tables` reads up to date."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**_recorded(file), **{name: table.record() for name, table in tables.items()}})


def _recorded(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}


def parse_tables(texts: Sequence[str]) -> dict[str, str]:
    """Return the folder or Hub id of every table, given as NAME=ID.

    Raises:
        ValueError: no name, a name twice, or the name 'own', which is the recipe's start.
    """
    tables: dict[str, str] = {}
    for text in texts:
        name, _, source = text.partition('=')
        name = _name(name, text)
        if not source:
            raise ValueError(f'Got --table {text!r}; write NAME=FOLDER or NAME=org/name@revision.')
        if name == OWN or name in tables:
            raise ValueError(f"Table {name!r} is there already ({OWN!r} is the recipe's own); choose another name.")
        tables[name] = source
    return tables


def _name(name: str, text: str) -> str:
    name = name.strip()
    if not re.fullmatch(r'\w+', name, re.ASCII):
        raise ValueError(f'Got {text!r}; a name has letters, digits and _ only, for it becomes part of a folder.')
    return name
