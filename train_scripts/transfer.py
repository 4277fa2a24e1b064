#!/usr/bin/env python3
"""Does a learned table transfer? Trains one network on every target data set under every table (Table VII).

Each target is trained with every table, learned (training goes on from it) and fixed (frozen), for every seed. The
table 'own' is the recipe's own start: learned it is ordinary P2BE, fixed a table nobody trained. Every run is one of
train.py; finished ones are kept, interrupted ones resumed. Writes transfer.json, transfer.md and transfer.png.
"""

import argparse
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints import newest_checkpoint
from timm_p2be import PixelEmbedding
from timm_p2be.artefact import codes_sha256
from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.robustness.results import environment
from timm_p2be.whole_files import write_json
from transfer_report import markdown, picture

MODES = ('learned', 'fixed')
OWN = 'own'
_TRAIN = Path(__file__).with_name('train.py')
_RESERVED = ('--model', '--seed', '--output', '--experiment', '--resume', '--p2be-embedding', '--p2be-freeze')
_EPILOG = """\
--target takes a name and the flags of train.py, in quotes: a recipe and where the data are, by any reader of timm.

example, after `timm-p2be publish RUN --embedding-only --dry-run tables/imagenet ...` for each source:
  python train_scripts/transfer.py --model wrn40_2_p2be --seeds 1 2 3 --output output/transfer \\
      --table imagenet=tables/imagenet cifar10=someone/p2be-m64-cifar10@v1 \\
      --target 'cifar10: -c train_scripts/recipes/cifar10.yaml --data-dir data' \\
               'cifar100: -c train_scripts/recipes/cifar100.yaml --data-dir data'
"""


class Failed(RuntimeError):
    """A run of train.py ended with an error; the message names its log."""


@dataclass(frozen=True)
class Cell:
    """One run: `target` trained from `table` in `mode` with `seed`."""

    target: str
    table: str
    mode: str
    seed: int

    def __str__(self) -> str:
        return f'{self.target}-{self.table}-{self.mode}-{self.seed}'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of transfer.py."""
    parser = argparse.ArgumentParser(
        prog='transfer.py',
        description=__doc__,
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
        if taken := sorted({word.partition('=')[0] for word in words} & set(_RESERVED)):
            raise ValueError(f'Target {name}: {", ".join(taken)} is set by transfer.py; leave it out of FLAGS.')
        targets[name] = words
    return targets


def parse_tables(texts: Sequence[str]) -> dict[str, str]:
    """Return the folder or Hub id of every table, given as NAME=ID; 'own' is the recipe's start.

    Raises:
        ValueError: no name, a name twice, or the name 'own'.
    """
    tables = {OWN: ''}
    for text in texts:
        name, _, source = text.partition('=')
        name = _name(name, text)
        if not source:
            raise ValueError(f'Got --table {text!r}; write NAME=FOLDER or NAME=org/name@revision.')
        if name in tables:
            raise ValueError(f"Table {name!r} is there already ({OWN!r} is the recipe's own); choose another name.")
        tables[name] = source
    return tables


def _name(name: str, text: str) -> str:
    name = name.strip()
    if not re.fullmatch(r'\w+', name, re.ASCII):
        raise ValueError(f'Got {text!r}; a name has letters, digits and _ only, for it becomes part of a folder.')
    return name


class Transfer:
    """The runs of one experiment.

    Args:
        targets: name to flags of train.py.
        tables: name to folder or Hub id, 'own' among them.
        model: network of every run.
        modes: of 'learned' and 'fixed'.
        seeds: of the runs.
        output: folder of runs and results.

    Raises:
        ValueError: a table cannot be loaded.
    """

    def __init__(
        self,
        targets: dict[str, list[str]],
        tables: dict[str, str],
        model: str,
        modes: Sequence[str],
        seeds: Sequence[int],
        output: Path,
    ) -> None:
        self.targets, self.tables, self.model, self.output = targets, tables, model, output
        self.embeddings = {name: PixelEmbedding.from_pretrained(source) for name, source in tables.items() if source}
        self.digests = {name: codes_sha256(embedding.codes()) for name, embedding in self.embeddings.items()}
        self.cells = [
            Cell(target, table, mode, seed)
            for target in targets
            for table in tables
            for mode in modes
            for seed in seeds
        ]

    def words(self, cell: Cell) -> list[str]:
        """Return the flags of train.py for one run."""
        words = [*self.targets[cell.target], '--model', self.model, '--seed', str(cell.seed)]
        if source := self.tables[cell.table]:
            words += ['--p2be-embedding', source]
        if cell.mode == 'fixed':
            words.append('--p2be-freeze')
        return words

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return the outcome of one run, made now unless it is finished already.

        Raises:
            Failed: train.py failed, did not validate, or moved a fixed table.
        """
        folder, words = self.output / str(cell), self.words(cell)
        outcome = folder / 'outcome.json'
        digest = self.digests.get(cell.table)
        if outcome.is_file():
            known = json.loads(outcome.read_text(encoding='utf-8'))
            if (known['flags'], known['codes_sha256']) != (words, digest):
                raise Failed(f'{folder} holds a run with other flags or another table; choose another --output.')
            return known
        start = time.time()
        self._train(cell, folder, words)
        self._check_fixed(cell, folder)
        rows = list(csv.DictReader((folder / 'summary.csv').read_text(encoding='utf-8').splitlines()))
        if not rows or not rows[-1].get('eval_top1'):
            raise Failed(f'{folder}: train.py measured no accuracy; give the target a --val-split.')
        result = {
            **vars(cell),
            'error': 100 - float(rows[-1]['eval_top1']),
            'epochs': int(rows[-1]['epoch']) + 1,
            'seconds': round(time.time() - start),  # of this call: a resumed run took longer
            'codes_sha256': digest,
            'flags': words,
        }
        write_json(outcome, result)
        return result

    def _train(self, cell: Cell, folder: Path, words: Sequence[str]) -> None:
        command = [sys.executable, str(_TRAIN), *words, '--output', str(self.output), '--experiment', str(cell)]
        if newest := newest_checkpoint(folder):
            command += ['--resume', str(newest)]
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / 'log.txt'
        with log.open('a') as file:
            with subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ) as child:
                try:
                    code = child.wait()
                except KeyboardInterrupt:
                    child.wait()  # it got the signal too, and saves where it is
                    raise
        if code:
            last = log.read_text(errors='replace').strip().splitlines()[-1:]
            raise Failed(f'{cell}: train.py exited with {code} ({"".join(last)}); see {log}.')

    def _check_fixed(self, cell: Cell, folder: Path) -> None:
        """Refuse a fixed table that is not, bit for bit, the one it was loaded from."""
        if cell.mode != 'fixed' or not self.tables[cell.table]:
            return
        state = read_checkpoint(folder / 'last.pth.tar').state_dict
        trained = next(tensor for name, tensor in state.items() if name.endswith('.embedding.weight'))
        source = self.embeddings[cell.table].weight
        if source is None or not torch.equal(trained, source.detach()):
            raise Failed(f'{cell}: the fixed table has moved; please report this with {folder / "log.txt"}.')

    def report(self, outcomes: Sequence[dict[str, Any]]) -> str:
        """Write transfer.json, transfer.md and transfer.png, and return the Markdown table."""
        tables = {
            name: {'codes_sha256': self.digests[name], 'provenance': embedding.provenance}
            for name, embedding in self.embeddings.items()
        }
        content = {'schema_version': 1, 'kind': 'transfer', 'model': self.model, 'tables': tables}
        write_json(self.output / 'transfer.json', {**content, 'runs': list(outcomes), 'environment': environment()})
        text = markdown(outcomes)
        (self.output / 'transfer.md').write_text(text + '\n', encoding='utf-8')
        picture(outcomes, f'{self.model}: error on the target data set').save(self.output / 'transfer.png')
        return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment and return the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds {args.seeds}: a seed twice is one run, not two')
    try:
        transfer = Transfer(
            parse_targets(args.target), parse_tables(args.table), args.model, args.mode, args.seeds, args.output
        )
    except ValueError as error:
        parser.error(str(error))
    outcomes = []
    try:
        for number, cell in enumerate(transfer.cells, start=1):
            outcomes.append(transfer.run(cell))
            done = outcomes[-1]
            print(f'[{number}/{len(transfer.cells)}] {cell}: {done["error"]:.2f} % error', flush=True)
    except Failed as error:
        print(f'transfer.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('transfer.py: interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    print(f'\n{transfer.report(outcomes)}\n\nWritten to {args.output}: transfer.json, transfer.md, transfer.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
