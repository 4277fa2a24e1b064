"""Does a learned table transfer? Trains one network on every target data set under every table (Table VII).

Each target is trained with every table, learned (training goes on from it) and fixed (frozen), for every seed. The
table 'own' is the recipe's own start: learned it is ordinary P2BE, fixed a table nobody trained. Every run is one of
train.py; finished ones are kept, interrupted ones (Ctrl-C, SIGTERM) resumed by the same command. Writes transfer.json,
transfer.md and transfer.png; every run has its log.txt.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.cli.interruption import terminated_as_interrupt
from timm_p2be.files import write_json
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.training.checkpoints import newest_checkpoint
from timm_p2be.training.transfer_inputs import (
    OWN,
    Table,
    build_parser,
    check_flags,
    flags_that_apply,
    load_tables,
    parse_targets,
    record_tables,
)
from timm_p2be.training.transfer_report import markdown, picture


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


class Transfer:
    """The runs of one experiment.

    Args:
        targets: name to flags of train.py.
        tables: name to table; 'own' comes on top.
        model: network of every run.
        modes: of 'learned' and 'fixed'.
        seeds: of the runs.
        output: folder of runs and results.

    Raises:
        ValueError: flags of a target that train.py does not take, or that apply to no run.
    """

    def __init__(
        self,
        targets: dict[str, list[str]],
        tables: dict[str, Table],
        model: str,
        modes: Sequence[str],
        seeds: Sequence[int],
        output: Path,
    ) -> None:
        self.targets, self.tables, self.model, self.output = targets, tables, model, output
        self.cells = [
            Cell(target, table, mode, seed)
            for target in targets
            for table in (OWN, *tables)
            for mode in modes
            for seed in seeds
        ]
        for target, words in targets.items():
            fixed = flags_that_apply(words, own=True, learned=False)
            if 'learned' not in modes and fixed != words:
                unused = ' '.join(word for word in words if word not in fixed)
                raise ValueError(f'target {target}: {unused}: for a table that is trained; --mode has fixed only.')
        for cell in self.cells:
            if cell.seed == seeds[0]:
                check_flags(cell.target, self.words(cell))

    def words(self, cell: Cell) -> list[str]:
        """Return the flags of train.py for one run."""
        target = flags_that_apply(self.targets[cell.target], cell.table == OWN, cell.mode == 'learned')
        words = [*target, '--model', self.model, '--seed', str(cell.seed)]
        if cell.table != OWN:
            words += ['--p2be-embedding', self.tables[cell.table].pinned]
        if cell.mode == 'fixed':
            words.append('--p2be-freeze')
        return words

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return the outcome of one run, made now unless it is finished already.

        Raises:
            Failed: train.py failed, or moved a fixed table.
        """
        folder, words = self.output / str(cell), self.words(cell)
        outcome = folder / 'outcome.json'
        digest = None if cell.table == OWN else self.tables[cell.table].digest
        if outcome.is_file():
            known = json.loads(outcome.read_text(encoding='utf-8'))
            if (known['flags'], known['codes_sha256']) != (words, digest):
                raise Failed(f'{folder} holds a run with other flags or another table; choose another --output.')
            return known
        start = time.time()
        self._train(cell, folder, words)
        self._check_fixed(cell, folder)
        last = list(csv.DictReader((folder / 'summary.csv').read_text(encoding='utf-8').splitlines()))[-1]
        result = {
            **vars(cell),
            'error': 100 - float(last['eval_top1']),
            'epochs': int(last['epoch']) + 1,
            'seconds': round(time.time() - start),  # of this call: a resumed run took longer
            'codes_sha256': digest,
            'flags': words,
        }
        write_json(outcome, result)
        return result

    def _train(self, cell: Cell, folder: Path, words: Sequence[str]) -> None:
        command = [
            sys.executable,
            '-m',
            'timm_p2be.training',
            *words,
            '--output',
            str(self.output),
            '--experiment',
            str(cell),
        ]
        if newest := newest_checkpoint(folder):
            command += ['--resume', str(newest)]
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / 'log.txt'
        with log.open('a') as file:
            with subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ) as child:
                try:
                    code = child.wait()
                except KeyboardInterrupt:
                    child.terminate()  # it saves where it is; after a Ctrl-C, which reached it too, that is an echo
                    child.wait()
                    raise
        if code:
            last = log.read_text(errors='replace').strip().splitlines()[-1:]
            raise Failed(f'{cell}: train.py exited with {code} ({"".join(last)}); see {log}.')

    def _check_fixed(self, cell: Cell, folder: Path) -> None:
        """Refuse a fixed table that is not, bit for bit, the one it was loaded from."""
        if cell.mode != 'fixed' or cell.table == OWN:
            return
        state = read_checkpoint(folder / 'last.pth.tar').state_dict
        trained = next(tensor for name, tensor in state.items() if name.endswith('.embedding.weight'))
        source = self.tables[cell.table].embedding.weight
        if source is None or not torch.equal(trained, source.detach()):
            raise Failed(f'{cell}: the fixed table has moved; please report this with {folder / "log.txt"}.')

    def report(self, outcomes: Sequence[dict[str, Any]]) -> str:
        """Write transfer.json, transfer.md and transfer.png, and return the Markdown table."""
        tables = {name: table.record() for name, table in self.tables.items()}
        content = {'schema_version': 1, 'kind': 'transfer', 'model': self.model, 'tables': tables}
        write_json(self.output / 'transfer.json', {**content, 'runs': list(outcomes), 'environment': environment()})
        text = markdown(outcomes)
        (self.output / 'transfer.md').write_text(text + '\n', encoding='utf-8')
        picture(outcomes, f'{self.model}: error on the target data set').save(self.output / 'transfer.png')
        return text


def _run(transfer: Transfer) -> None:
    """Make all runs, a line of progress each, and report."""
    count, outcomes = len(transfer.cells), []
    print(f'{count} runs in {transfer.output}; while one trains, its log.txt grows', flush=True)
    for number, cell in enumerate(transfer.cells, start=1):
        outcomes.append(transfer.run(cell))
        print(f'[{number}/{count}] {cell}: {outcomes[-1]["error"]:.2f} % error', flush=True)
    print(f'\n{transfer.report(outcomes)}\n\nWritten to {transfer.output}: transfer.json, transfer.md, transfer.png')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment and return the exit code."""
    parser = build_parser(__doc__)
    args = parser.parse_args(argv)
    for flag, values in (('--seeds', args.seeds), ('--mode', args.mode)):
        if len(set(values)) < len(values):
            parser.error(f'{flag} {" ".join(map(str, values))}: a value twice is one run, not two')
    try:
        with terminated_as_interrupt():
            try:
                targets = parse_targets(args.target)
                tables = load_tables(args.table, args.output / 'tables.json')
                transfer = Transfer(targets, tables, args.model, args.mode, args.seeds, args.output)
            except ValueError as error:
                parser.error(str(error))
            record_tables(tables, args.output / 'tables.json')
            _run(transfer)
    except Failed as error:
        print(f'transfer.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('transfer.py: interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    return 0
