"""`timm-p2be benchmark leaderboard`: one page from the result files of many benchmarks."""

import argparse
from collections.abc import Callable
from pathlib import Path

from timm_p2be.cli.interruption import run_long
from timm_p2be.robustness.evaluation.leaderboard import leaderboard
from timm_p2be.robustness.evaluation.results import read_json


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `benchmark leaderboard` and return the command."""
    parser.epilog = 'example:\n  timm-p2be benchmark leaderboard results/*/results.json attacks/*.attacks.json\n'
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE', help='results.json, *.attacks.json')
    parser.add_argument(
        '--output', type=Path, default=Path('output/leaderboard'), metavar='DIR', help='default: %(default)s'
    )
    return lambda args: run_long(parser, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    report = leaderboard([read_json(file, 'corruptions', 'attacks') for file in args.files])
    args.output.mkdir(parents=True, exist_ok=True)
    report.write(args.output)
    print(report.markdown())
    return 0
