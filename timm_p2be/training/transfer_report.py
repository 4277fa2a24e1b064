"""The outcome of transfer.py: a text table with one row a table of codes, and a picture with one panel a target."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_p2be.extras import require

_COLORS = {'learned': '#2b6cb0', 'fixed': '#c05621'}

Outcome = dict[str, Any]


def _errors(outcomes: Sequence[Outcome], **cell: str) -> list[float]:
    """Return the errors in percent of the runs of a cell, one a seed."""
    return [outcome['error'] for outcome in outcomes if cell.items() <= outcome.items()]


def _keys(outcomes: Sequence[Outcome], *names: str) -> list[tuple[str, ...]]:
    """Return the different values of some keys in the order of the runs."""
    return list(dict.fromkeys(tuple(outcome[name] for name in names) for outcome in outcomes))


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a Markdown table: mean errors in percent, and their standard deviation where there are several seeds."""
    head = _keys(outcomes, 'target', 'mode')
    lines = ['| table | ' + ' | '.join(f'{target}, {mode}' for target, mode in head) + ' | seeds |']
    lines.append('|' + '---|' * (len(head) + 2))
    for (table,) in _keys(outcomes, 'table'):
        cells = [_errors(outcomes, table=table, target=target, mode=mode) for target, mode in head]
        lines.append(f'| {table} | ' + ' | '.join(map(_figure, cells)) + f' | {max(map(len, cells))} |')
    return '\n'.join(lines)


def _figure(found: Sequence[float]) -> str:
    if not found:
        return '-'
    spread = f' ± {statistics.stdev(found):.2f}' if len(found) > 1 else ''
    return f'{statistics.fmean(found):.2f}{spread}'


def picture(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Draw a panel for each target: every seed's error as a ring, and their mean as a bar."""
    columns, targets = _keys(outcomes, 'table', 'mode'), _keys(outcomes, 'target')
    figure = require('matplotlib.figure', extra='robustness').Figure(
        figsize=(1.5 + 1.1 * len(columns), 3.2 * len(targets)), layout='constrained'
    )
    figure.suptitle(title)
    for axes, (target,) in zip(figure.subplots(len(targets), squeeze=False)[:, 0], targets, strict=True):
        axes.set_title(target, loc='left')
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_xticks(range(len(columns)), ['\n'.join(column) for column in columns])
        for place, (table, mode) in enumerate(columns):
            if found := _errors(outcomes, target=target, table=table, mode=mode):
                axes.plot([place] * len(found), found, 'o', color=_COLORS[mode], fillstyle='none')
                axes.hlines(statistics.fmean(found), place - 0.2, place + 0.2, color=_COLORS[mode])
    figure.savefig(path)
