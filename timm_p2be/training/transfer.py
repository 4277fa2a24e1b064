"""Does a learned table transfer? Trains one network on every target data set under every table (Table VII).

Each target is trained with every table, learned (training goes on from it) and fixed (frozen), for every seed. The
table 'own' is the recipe's own start: learned it is ordinary P2BE, fixed a table nobody trained. Every run is one of
train.py; finished ones are kept, interrupted ones (Ctrl-C, SIGTERM) resumed by the same command. Writes transfer.json,
transfer.md and transfer.png; every run has its log.txt.
"""

import argparse
import csv
import itertools
import logging
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from timm_p2be import PixelEmbedding
from timm_p2be.cli.interruption import run_long
from timm_p2be.encodings.table_file import codes_sha256
from timm_p2be.extras import require
from timm_p2be.files import read_json, write_json
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.training.arguments import flag_groups, parse_args
from timm_p2be.training.checkpoints import newest_checkpoint
from timm_p2be.training.conflicts import TRAINED_ONLY, flag_name
from timm_p2be.training.embedding_flags import pinned
from timm_p2be.training.run import main as train
from timm_p2be.training.transfer_report import markdown, picture

OWN = 'own'
_MODES = ('learned', 'fixed')
_RESERVED = {'--model', '--seed', '--output', '--experiment', '--resume', '--p2be-embedding', '--p2be-freeze'}
_EPILOG = """\
--target takes a name and the flags of train.py, in quotes: a recipe and where the data are, by any reader of timm.
Flags of the table go only to the runs that they apply to, be they from FLAGS or from a recipe: --p2be-init to those of
the table 'own'; --p2be-lr, -min-lr, -sched, -betas, -weight-decay, -smoothness and -reduction to the learned ones.
A Hub id means its commit of the first call, for later calls with the same --output too.

example, after `timm-p2be publish RUN --embedding-only --dry-run tables/imagenet ...` for each source:
  python train_scripts/transfer.py --model wrn40_2_p2be --seeds 1 2 3 --output output/transfer \\
      --table imagenet=tables/imagenet cifar10=someone/p2be-m64-cifar10@v1 \\
      --target 'cifar10: -c cifar10 --data-dir data' 'cifar100: -c cifar100 --data-dir data --p2be-lr 2e-4'
"""


class Failed(RuntimeError):
    """A run of train.py ended with an error; the message names its log."""


class Cell(NamedTuple):
    """One run: `target` trained from `table` in `mode` with `seed`."""

    target: str
    table: str
    mode: str
    seed: int

    def __str__(self) -> str:
        return '-'.join(map(str, self))


def plan(
    targets: dict[str, list[str]],
    tables: dict[str, dict[str, Any]],
    model: str,
    modes: Sequence[str],
    seeds: Sequence[int],
) -> dict[Cell, list[str]]:
    """Return the flags of train.py for every run, or raise ValueError if train.py would refuse them."""
    runs = {}
    for cell in map(Cell._make, itertools.product(targets, (OWN, *tables), modes, seeds)):
        left_out = set(map(flag_name, TRAINED_ONLY)) if cell.mode == 'fixed' else set()
        if cell.table != OWN:
            left_out.add('--p2be-init')
        words = [word for flag, group in flag_groups(targets[cell.target]) if flag not in left_out for word in group]
        words += ['--model', model, '--seed', str(cell.seed)]
        if cell.table != OWN:
            words += ['--p2be-embedding', tables[cell.table]['pinned']]
        if cell.mode == 'fixed':
            words.append('--p2be-freeze')
        _check_flags(cell.target, words)
        runs[cell] = words
    return runs


def _check_flags(target: str, words: Sequence[str]) -> None:
    try:
        args = parse_args(words).args
    except SystemExit as error:
        raise ValueError(f'target {target}: train.py refuses its flags for the reason above.') from error
    if (bool(args.p2be_embedding), args.p2be_freeze) != ('--p2be-embedding' in words, '--p2be-freeze' in words):
        raise ValueError(
            f'target {target}: its recipe or --model-kwargs names a table or freezes it. Leave that out: transfer.py '
            'sets it by --table and --mode.'
        )
    if not args.val_split:
        raise ValueError(f'target {target}: no accuracy would be measured; give it a --val-split.')


def run(cell: Cell, words: list[str], output: Path) -> dict[str, Any]:
    """Return the outcome of one run, made now unless it is finished already, or raise Failed."""
    folder = output / str(cell)
    outcome = folder / 'outcome.json'
    if outcome.is_file():
        known = read_json(outcome)
        if known['flags'] != words:
            raise Failed(f'{folder} holds a run with other flags; choose another --output.')
        return known
    start = time.time()
    where = ['--output', str(output), '--experiment', str(cell)]
    if newest := newest_checkpoint(folder):
        where += ['--resume', str(newest)]
    folder.mkdir(parents=True, exist_ok=True)
    torch.compiler.reset()  # a process compiles a function for a few networks only
    log = logging.FileHandler(folder / 'log.txt', encoding='utf-8')
    logging.root.addHandler(log)
    logging.root.setLevel(logging.INFO)
    try:
        code = train([*words, *where])
    finally:
        logging.root.removeHandler(log)
        log.close()
    if code > 128:  # a signal, after it has saved where it is
        raise KeyboardInterrupt
    if code:
        raise Failed(f'{cell}: train.py ended with {code} for the reason above; see {log.baseFilename}.')
    last = list(csv.DictReader((folder / 'summary.csv').read_text(encoding='utf-8').splitlines()))[-1]
    result = {
        **cell._asdict(),
        'error': 100 - float(last['eval_top1']),
        'epochs': int(last['epoch']) + 1,
        'seconds': round(time.time() - start),  # of this call: a resumed run took longer
        'flags': words,
    }
    write_json(outcome, result)
    return result


def parse_targets(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of train.py for every target, given as 'NAME: FLAGS', or raise ValueError."""
    targets = {}
    for name, flags in _named(texts, ':', "'NAME: FLAGS', for example 'cifar10: -c cifar10 --data-dir data'").items():
        targets[name] = shlex.split(flags)
        if taken := sorted({flag for flag, _ in flag_groups(targets[name])} & _RESERVED):
            raise ValueError(f'Target {name}: {", ".join(taken)} is set by transfer.py; leave it out of FLAGS.')
    return targets


def load_tables(texts: Sequence[str], known: dict[str, dict[str, Any]], output: Path) -> dict[str, dict[str, Any]]:
    """Return what there is to say of the tables given as NAME=ID, the Hub's being at one commit for all runs.

    `known` is what earlier calls said of theirs in `output`. Raises ValueError: a bad name, a source that cannot be
    loaded, or another table than that of an earlier call.
    """
    tables = {}
    for name, source in _named(texts, '=', 'NAME=FOLDER or NAME=org/name@revision').items():
        earlier = known.get(name, {})
        place = earlier['pinned'] if earlier.get('source') == source else pinned(source)
        embedding = PixelEmbedding.from_pretrained(place)
        digest = codes_sha256(embedding.codes())
        if earlier and (earlier['source'], earlier['codes_sha256']) != (source, digest):
            raise ValueError(
                f'Table {name!r}: runs in {output} have another table of this name, from {earlier["source"]}; '
                'choose another name or another --output.'
            )
        provenance = embedding.provenance
        tables[name] = {'source': source, 'pinned': place, 'codes_sha256': digest, 'provenance': provenance}
    return tables


def _named(texts: Sequence[str], separator: str, form: str) -> dict[str, str]:
    """Return name -> rest of texts; a name becomes part of a folder, and 'own' is the recipe's start."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, rest = (part.strip() for part in text.partition(separator))
        if not rest or not re.fullmatch(r'\w+', name, re.ASCII):
            raise ValueError(f'Got {text!r}; write {form}, a name being letters, digits and _ only.')
        if name == OWN or name in found:
            raise ValueError(f'The name {name!r} is there already ({OWN!r} is the recipe); choose another.')
        found[name] = rest
    return found


def _experiment(args: argparse.Namespace) -> int:
    require('matplotlib', extra='robustness')  # now, not when all runs are done
    file = args.output / 'tables.json'
    known = read_json(file) if file.is_file() else {}
    tables = load_tables(args.table, known, args.output)
    runs = plan(parse_targets(args.target), tables, args.model, args.mode, args.seeds)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(file, {**known, **tables})
    print(f'{len(runs)} runs in {args.output}; while one trains, its log.txt grows', flush=True)
    outcomes: list[dict[str, Any]] = []
    for cell, words in runs.items():
        try:
            outcomes.append(run(cell, words, args.output))
        except Failed as error:
            print(f'transfer.py: error: {error}', file=sys.stderr)
            return 1
        print(f'[{len(outcomes)}/{len(runs)}] {cell}: {outcomes[-1]["error"]:.2f} % error', flush=True)
    content = {'schema_version': 1, 'kind': 'transfer', 'model': args.model, 'tables': tables}
    write_json(args.output / 'transfer.json', {**content, 'runs': outcomes, 'environment': environment()})
    text = markdown(outcomes)
    (args.output / 'transfer.md').write_text(text + '\n', encoding='utf-8')
    picture(outcomes, f'{args.model}: error on the target data set, in percent', args.output / 'transfer.png')
    print(f'\n{text}\n\nWritten to {args.output}: transfer.json, transfer.md, transfer.png')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment and return the exit code."""
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
    parser.add_argument('--mode', nargs='+', choices=_MODES, default=list(_MODES), help='default: both')
    parser.add_argument('--seeds', nargs='+', type=int, default=[42], metavar='S', help='default: 42')
    parser.add_argument('--output', type=Path, default=Path('output/transfer'), help='default: %(default)s')
    args = parser.parse_args(argv)
    return run_long(parser, lambda: _experiment(args), lambda: 'The same command goes on from here.')
