"""`timm-p2be status`: where a run of train.py stands, at work or ended."""

import argparse
import csv
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from timm_p2be.cli.interruption import run_long
from timm_p2be.hub.run_folder import read_flags
from timm_p2be.locks import holder_of
from timm_p2be.training.checkpoints import newest_checkpoint
from timm_p2be.training.output import LOCK


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `status` and return the command."""
    parser.add_argument('run', type=Path, metavar='RUN', help='folder of a run: its --output and --experiment')
    return lambda args: run_long(parser, lambda: _run(args.run))


def _run(folder: Path) -> int:
    args = read_flags(folder / 'args.yaml')
    rows = []
    if (summary := folder / 'summary.csv').is_file():
        rows = list(csv.DictReader(summary.read_text().splitlines()))
    holder = holder_of(folder / LOCK)
    epochs = int(rows[-1]['epoch']) + 1 if rows else 0
    state = f'at work ({holder})' if holder else 'finished' if epochs >= args['epochs'] else 'stopped'
    lines = [('model', args['model']), ('data', args['dataset'] or args['data_dir'] or ''), ('state', state)]
    lines.append(('epochs', f'{epochs} of {args["epochs"]} done'))
    if rows:
        lines.append(('last', ', '.join(f'{name} {float(value):.4g}' for name, value in rows[-1].items() if value)))
        column = f'eval_{args["eval_metric"]}'
        if column in rows[0]:
            pick = min if args['eval_metric'] == 'loss' else max
            best = pick(rows, key=lambda row: float(row[column]))
            lines.append(('best', f'{column} {float(best[column]):.4g}, epoch {best["epoch"]}'))
    if newest := newest_checkpoint(folder):
        age = timedelta(seconds=round(time.time() - newest.stat().st_mtime))
        lines.append(('checkpoint', f'{newest.name}, written {age} ago'))
    if state == 'stopped':
        lines.append(('go on', f'the same command with --experiment {folder.name} --resume auto'))
    print('\n'.join(f'{label:<12}{text}' for label, text in lines))
    return 0
