"""Does a learned table transfer? Trains one network on every target data set under every table (Table VII).

Each target is trained with every table, learned (training goes on from it) and fixed (frozen), for every seed. The
table 'own' is the recipe's own start: learned it is ordinary P2BE, fixed a table nobody trained. --corruptions
adds the error under corruptions, the rows CIFAR-10-C and CIFAR-100-C of Table VII. Every run is one of train.py;
finished ones are kept, interrupted ones (Ctrl-C, SIGTERM) resumed by the same command. Writes report.html, report.md
and results.json; every run has its log.txt.
"""

import argparse
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from timm_p2be.cli.interruption import run_long
from timm_p2be.reproduce.grid import SEED, Grid, Run, axes_in_words
from timm_p2be.reproduce.running import carry_out, check
from timm_p2be.training.arguments import flag_groups
from timm_p2be.training.conflicts import TRAINED_ONLY, flag_name
from timm_p2be.training.embedding_flags import pinned

OWN = 'own'
_MODES = ('learned', 'fixed')
_RESERVED = {'--model', '--seed', '--output', '--experiment', '--resume', '--p2be-embedding', '--p2be-freeze'}
_EPILOG = """\
--target takes a name and the flags of train.py, in quotes: a recipe and where the data are, by any reader of timm.
Flags of the table go only to the runs that they apply to, be they from FLAGS or from a recipe: --p2be-init to those of
the table 'own'; --p2be-lr, -min-lr, -sched, -betas, -weight-decay, -smoothness and -reduction to the learned ones.
A Hub id means its commit of now; runs in --output that began with another one are refused, with its name.

example, after `timm-p2be publish RUN --embedding-only --dry-run tables/imagenet ...` for each source:
  python train_scripts/transfer.py --model wrn40_2_p2be --seeds 1 2 3 --output output/transfer \\
      --table imagenet=tables/imagenet cifar10=someone/p2be-m64-cifar10@v1 \\
      --target 'cifar10: -c cifar10 --data-dir data' 'cifar100: -c cifar100 --data-dir data --p2be-lr 2e-4'
"""


def plan(
    targets: dict[str, list[str]],
    tables: dict[str, str],
    model: str,
    modes: Sequence[str],
    seeds: Sequence[int],
) -> list[Run]:
    """Return all runs, or raise ValueError if train.py would refuse one."""
    runs = []
    for target, table, mode, seed in itertools.product(targets, (OWN, *tables), modes, seeds):
        left_out = set(map(flag_name, TRAINED_ONLY)) if mode == 'fixed' else set()
        if table != OWN:
            left_out.add('--p2be-init')
        words = [word for flag, group in flag_groups(targets[target]) if flag not in left_out for word in group]
        words += ['--model', model, '--seed', str(seed)]
        words += ['--p2be-embedding', tables[table]] if table != OWN else []
        words += ['--p2be-freeze'] if mode == 'fixed' else []
        run = Run({'target': target, 'table': table, 'mode': mode, SEED: str(seed)}, words)
        args = run.arguments.args
        if (bool(args.p2be_embedding), args.p2be_freeze) != (table != OWN, mode == 'fixed'):
            raise ValueError(
                f'Run {run.name}: its recipe or --model-kwargs names a table or freezes it. Leave that out: '
                'transfer.py sets it by --table and --mode.'
            )
        runs.append(run)
    return runs


def parse_targets(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of train.py for every target, given as 'NAME: FLAGS', or raise ValueError."""
    targets = {}
    for name, flags in _named(texts, ':', "'NAME: FLAGS', for example 'cifar10: -c cifar10 --data-dir data'").items():
        targets[name] = shlex.split(flags)
        if taken := sorted({flag for flag, _ in flag_groups(targets[name])} & _RESERVED):
            raise ValueError(f'Target {name}: {", ".join(taken)} is set by transfer.py; leave it out of FLAGS.')
    return targets


def parse_tables(texts: Sequence[str]) -> dict[str, str]:
    """Return the tables given as NAME=ID, those of the Hub by the commit that they have now for all runs."""
    return {
        name: pinned(source) for name, source in _named(texts, '=', 'NAME=FOLDER or NAME=org/name@revision').items()
    }


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


def _experiment(args: argparse.Namespace, prog: str) -> int:
    tables, targets = parse_tables(args.table), parse_targets(args.target)
    names = {
        'target': {name: shlex.join(flags) for name, flags in targets.items()},
        'table': {OWN: 'the start of the recipe', **tables},
        'mode': {mode: mode for mode in args.mode},
        SEED: {str(seed): str(seed) for seed in args.seeds},
    }
    grid = Grid(
        title=f'{args.model}: tables of codes over data sets, as Table VII',
        axes=names,
        runs=plan(targets, tables, args.model, args.mode, args.seeds),
        columns=['target', 'mode'],
        show=['clean'] if args.corruptions is None else ['clean', 'corrupted'],
        compare='table',
        settings=axes_in_words(names),
        corruption_images=args.corruptions or None,
    )
    check(grid)
    return carry_out(grid, args.output, {}, prog)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment and return the exit code."""
    parser = argparse.ArgumentParser(
        prog='transfer.py',
        description=__doc__,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--target', nargs='+', required=True, metavar="'NAME: FLAGS'", help='data sets to train on')
    add('--table', nargs='+', default=[], metavar='NAME=ID', help='folders or Hub ids of tables')
    add('--model', default='wrn40_2_p2be', help='P2BE network of every run (default: %(default)s)')
    add('--mode', nargs='+', choices=_MODES, default=list(_MODES), help='default: both')
    add('--seeds', nargs='+', type=int, default=[42], metavar='S', help='default: 42')
    add('--corruptions', nargs='?', type=int, const=0, metavar='N', help='measure those of the first N images (or all)')
    add('--output', type=Path, default=Path('output/transfer'), help='default: %(default)s')
    args = parser.parse_args(argv)
    return run_long(parser, lambda: _experiment(args, parser.prog), 'The same command goes on from here.')
