"""The outcome of transfer.py: a text table with one row a table of codes, and a picture with one panel a target."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 70, 40, 110, 220, 90
_COLORS = {'learned': '#2b6cb0', 'fixed': '#c05621'}

Outcome = dict[str, Any]


def columns(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Return the (table, mode) pairs in the order of the runs."""
    return list(dict.fromkeys((outcome['table'], outcome['mode']) for outcome in outcomes))


def errors(outcomes: Sequence[Outcome], target: str, column: tuple[str, str]) -> list[float]:
    """Return the errors in percent of all seeds of one cell."""
    return [o['error'] for o in outcomes if o['target'] == target and (o['table'], o['mode']) == column]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a Markdown table: mean errors in percent, and their standard deviation where there are several seeds."""
    head = list(dict.fromkeys((outcome['target'], outcome['mode']) for outcome in outcomes))
    lines = ['| table | ' + ' | '.join(f'{target}, {mode}' for target, mode in head) + ' | seeds |']
    lines.append('|' + '---|' * (len(head) + 2))
    for table in dict.fromkeys(outcome['table'] for outcome in outcomes):
        cells = [errors(outcomes, target, (table, mode)) for target, mode in head]
        seeds = max(len(cell) for cell in cells)
        lines.append(f'| {table} | ' + ' | '.join(map(_figure, cells)) + f' | {seeds} |')
    return '\n'.join(lines)


def picture(outcomes: Sequence[Outcome], title: str) -> Image.Image:
    """Return a dot plot, one panel a target: every seed's error, and a bar at their mean."""
    head, targets = columns(outcomes), _targets(outcomes)
    size = (_LEFT + _WIDTH * len(head) + 20, _TOP + (_HEIGHT + _GAP) * len(targets))
    canvas = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    draw.text((_LEFT, 10), f'{title}, in percent', fill='black', font=font)
    for row, target in enumerate(targets):
        top = _TOP + row * (_HEIGHT + _GAP)
        values = [error for column in head for error in errors(outcomes, target, column)]
        low, high = _range(values)

        def height(error: float, top: int = top, low: float = low, high: float = high) -> float:
            return top + _HEIGHT * (high - error) / (high - low)

        draw.rectangle((_LEFT, top, size[0] - 20, top + _HEIGHT), outline='#888888')
        draw.text((_LEFT + 6, top + 4), target, fill='black', font=font)
        for tick in _ticks(low, high):
            draw.line((_LEFT - 4, height(tick), _LEFT, height(tick)), fill='#888888')
            draw.text((_LEFT - 8, height(tick)), f'{tick:.1f}', fill='black', font=font, anchor='rm')
        for place, column in enumerate(head):
            center = _LEFT + _WIDTH * (place + 0.5)
            color = _COLORS[column[1]]
            found = errors(outcomes, target, column)
            for error in found:
                draw.ellipse((center - 4, height(error) - 4, center + 4, height(error) + 4), outline=color, width=2)
            if found:
                mean = height(statistics.fmean(found))
                draw.line((center - 18, mean, center + 18, mean), fill=color, width=2)
            draw.text((center, top + _HEIGHT + 8), column[0], fill='black', font=font, anchor='ma')
            draw.text((center, top + _HEIGHT + 26), column[1], fill=color, font=font, anchor='ma')
    return canvas


def _targets(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome['target'] for outcome in outcomes))


def _figure(found: Sequence[float]) -> str:
    if not found:
        return '-'
    spread = f' ± {statistics.stdev(found):.2f}' if len(found) > 1 else ''
    return f'{statistics.fmean(found):.2f}{spread}'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return axis limits with a margin; equal values get a range of 1."""
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 0.5
    return max(low - margin, 0.0), high + margin


def _ticks(low: float, high: float) -> Iterator[float]:
    for step in range(5):
        yield low + (high - low) * (step + 0.5) / 5
