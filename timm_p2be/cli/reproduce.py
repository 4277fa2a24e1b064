"""`timm-p2be reproduce`: a table or figure of the paper from training to a page, at the size that there is time for."""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from timm_p2be.cli.interruption import run_long
from timm_p2be.reproduce.grid import TABLES, Grid, read_grid
from timm_p2be.reproduce.planning import commands, plan
from timm_p2be.reproduce.running import carry_out, check
from timm_p2be.training.embedding_flags import pinned
from timm_p2be.training.flags import add_data_flags

_GRIDS = {'table': ('II', 'III', 'IV', 'V', 'VI', 'VII'), 'figure': ('2', '3')}
_OWN = ('num_classes', 'device')  # flags of train.py beside those of the data
_EPILOG = """\
Grids are YAML files (timm_p2be/reproduce/tables): axes, flags of train.py, what is measured, the paper's claims, the
rule of their verdicts, and budgets. OUTPUT gets a folder a run, then report.html, report.md and results.json. The same
command again does what is missing, also after a kill; started several times it shares the runs out.

Flags of the data take the place of the grid's own, which the page then says. Where neither names any, images are those
of the recipe in --data-dir data.

examples:
  timm-p2be reproduce --table II --budget minutes --data-dir data --dataset-download
  timm-p2be reproduce --table IV --dataset hfds/FOLDER --input-key img --target-key label --val-split test
  timm-p2be reproduce --table II --budget paper --plan
  timm-p2be reproduce --table II --budget paper --print-commands | xargs -P 4 -d '\\n' -n 1 sh -c
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `reproduce` and return the command."""
    parser.epilog = _EPILOG
    group = parser.add_argument_group('grid').add_mutually_exclusive_group(required=True)
    for name, choices in _GRIDS.items():
        group.add_argument(f'--{name}', choices=choices, help='of the paper')
    group.add_argument('--grid', type=Path, metavar='FILE', help='a grid of your own')
    add = parser.add_argument_group('size').add_argument
    add('--budget', metavar='NAME', help="minutes, hours or paper (default: the grid's first, minutes)")
    add('--seeds', nargs='+', type=int, default=[], metavar='S', help="default: the budget's")
    add('--limit', type=int, metavar='N', help='measure the first N images only, for a quick look')
    add('--plan', action='store_true', help='say what it would cost on this machine, after half a minute')
    add('--print-commands', action='store_true', help='print one training a line, for a queue; the grid finds them')
    add = parser.add_argument_group('run').add_argument
    add('--output', type=Path, metavar='DIR', help='default: output/reproduce/NAME-BUDGET')
    add('--corrupted', nargs='+', default=[], metavar='[DATASET=]DIR', help='stored images, as CIFAR-100-C')
    add('--embedding', default='', metavar='ID_OR_FOLDER', help='table of codes that Table VII fixes')
    add('--device', help="default: the recipe's, cuda if there is one")
    add('--num-classes', type=int, metavar='N', help="of the data, if they are not the table's")
    before = len(parser._actions)
    add_data_flags(parser)
    for action in parser._actions[before:]:
        action.default = argparse.SUPPRESS  # what is not given stays the recipe's
        action.help = (action.help or '').replace('%(default)s', "the recipe's")
    names = [action.dest for action in parser._actions[before:]]

    kept = 'The same command goes on from here.'
    return lambda args: run_long(parser, lambda: _run(args, names, parser.prog), kept)


def _run(args: argparse.Namespace, data_names: list[str], prog: str) -> int:
    name = args.table or (f'figure{args.figure}' if args.figure else args.grid.stem)
    grid = _grid(args, args.grid or TABLES / f'{name}.yaml', data_names)
    output = args.output or Path('output/reproduce') / f'{name}-{grid.settings["budget"]}'
    corrupted = {dataset: Path(folder) for dataset, _, folder in (text.rpartition('=') for text in args.corrupted)}
    check(grid, corrupted)
    if args.print_commands:
        print('\n'.join(map(shlex.join, commands(grid, output))))
        return 0
    if args.plan:
        table = plan(grid)
        for first, *rest in [table.header, *table.rows]:
            print(f'{first:<34}', *(f'{cell:>23}' for cell in rest), sep='')
        return 0
    return carry_out(grid, output, corrupted, prog)


def _grid(args: argparse.Namespace, path: Path, data_names: list[str]) -> Grid:
    data = {name: getattr(args, name) for name in data_names if hasattr(args, name)}
    data |= {name: getattr(args, name) for name in _OWN if getattr(args, name) is not None}
    embedding = pinned(args.embedding) if args.embedding else None if args.plan else ''
    grid = read_grid(path, args.budget, data, embedding, args.seeds)
    if args.limit is None:
        return grid
    scale = ', '.join(filter(None, (grid.scale, f'first {args.limit} images')))
    return replace(grid, scale=scale, corruption_images=args.limit, attack_images=args.limit)
