"""Self-contained HTML for reports: page, table, line chart, heat map. No scripts; every text is escaped."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

Point = tuple[float, float]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707d; --line: #d7dce2; --ground: #ffffff; --hot: #e8590c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #98a2b0; --line: #343c47; --ground: #14181d; --hot: #c2410c; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.wide { white-space: normal; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
td.heat { text-align: right; background: color-mix(in srgb, var(--hot) var(--heat), transparent); }
.note { border-left: 3px solid var(--hot); padding: .1rem .8rem; margin: .4rem 0; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); fill: none; } svg .curve { fill: none; stroke-width: 2; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2rem; }
h3 { font-size: 1rem; margin: .6rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; font-size: 13px; }
.c0 { stroke: #2f8fcf; } .c1 { stroke: #d55e00; } .c2 { stroke: #009e73; } .c3 { stroke: #cc79a7; }
.c4 { stroke: #e69f00; } .c5 { stroke: #56b4e9; } .c6 { stroke: #8a6d3b; } .c7 { stroke: #7f7f7f; }
"""
_DASHES = ('', '7 4', '2 3', '9 3 2 3')
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 320, 62, 46, 12


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole HTML document.

    Args:
        title: plain text.
        sections: headings (plain text) and bodies (HTML, as the functions of this module return).

    Example:
        >>> 'a &lt; b' in page('a < b', [('Section', paragraph('text'))])
        True
    """
    body = '\n'.join(f'<section><h2>{escape(heading)}</h2>\n{content}</section>' for heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{_STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'
    )


def paragraph(text: str, note: bool = False) -> str:
    """Return a paragraph; `note` marks it as something the reader must know."""
    return f'<p class="note">{escape(text)}</p>' if note else f'<p>{escape(text)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts; cells that look like numbers are aligned to the right."""
    head = ''.join(f'<th{_alignment(rows, column)}>{escape(cell)}</th>' for column, cell in enumerate(header))
    body = '\n'.join(f'<tr>{"".join(_cell(cell) for cell in row)}</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def is_number(text: str) -> bool:
    """Return whether a cell is a number, a percentage, or the dash of a missing one."""
    return bool(re.fullmatch(r'[-+]?[\d.,]+ ?%?|-', text))


def grid(blocks: Mapping[str, str]) -> str:
    """Return blocks of HTML beside each other where there is room, each below its title (plain text)."""
    cells = ''.join(f'<div><h3>{escape(title)}</h3>{content}</div>' for title, content in blocks.items())
    return f'<div class="grid">{cells}</div>'


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], top: float | None = None
) -> str:
    """Return a table of colored numbers.

    Args:
        rows: names of the rows.
        columns: names of the columns.
        values: one list per row; None leaves a cell empty. Below 0 is colored as 0.
        top: the value of the full color; None takes the largest, maps to be compared need the same.
    """
    top = top or max((value for line in values for value in line if value is not None), default=0.0) or 1.0
    head = '<th></th>' + ''.join(f'<th class="number">{escape(column)}</th>' for column in columns)
    lines = []
    for name, line in zip(rows, values, strict=True):
        cells = ''.join(
            '<td class="number">-</td>'
            if value is None
            else f'<td class="heat" style="--heat: {75 * min(max(value / top, 0.0), 1.0):.0f}%">{value:.1f}</td>'
            for value in line
        )
        lines.append(f'<tr><th>{escape(name)}</th>{cells}</tr>')
    body = '\n'.join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def line_chart(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Return curves as inline SVG with a legend; the y axis starts at 0 unless a value is negative.

    Args:
        series: name -> (x, y) points, in the order they are joined; points that are not finite are left out.
        x_label: what x is.
        y_label: what y is.
    """
    curves = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return paragraph('No points to draw.')
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = sorted(set(xs)) if len(set(xs)) <= 12 else _ticks(min(xs), max(xs))
    y_ticks = _ticks(min(0.0, *ys), max(ys))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = min(y_ticks), max(y_ticks)

    def place(x: float, y: float) -> Point:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - 24)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _BOTTOM - _TOP)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = [_axes(place, x_ticks, y_ticks), _labels(x_label, y_label)]
    legend = []
    for number, (name, curve) in enumerate(curves.items()):
        style = f'class="curve c{number % 8}" stroke-dasharray="{_DASHES[(number + number // 8) % 4]}"'
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in (place(*point) for point in curve))
        dots = ''.join('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*place(*point)) for point in curve)
        title = f'<title>{escape(name)}</title>'
        parts.append(f'<g {style}>{title}<polyline points="{path}"/><g stroke-dasharray="none">{dots}</g></g>')
        sample = f'<svg width="30" height="10"><line x1="0" x2="30" y1="5" y2="5" {style}/></svg>'
        legend.append(f'<li>{sample} {escape(name)}</li>')
    label = escape(f'{y_label} over {x_label}', quote=True)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{label}">'
    return f'{drawing}{"".join(parts)}</svg><ul class="legend">{"".join(legend)}</ul>'


def _axes(place: Callable[[float, float], Point], x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for y in y_ticks:
        _, down = place(x_ticks[0], y)
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 24}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        across, _ = place(x, y_ticks[0])
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{x:g}</text>')
    return ''.join(parts)


def _labels(x_label: str, y_label: str) -> str:
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose low..high."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _cell(text: str) -> str:
    if is_number(text):
        return f'<td class="number">{escape(text)}</td>'
    return f'<td class="wide">{escape(text)}</td>' if len(text) > 60 else f'<td>{escape(text)}</td>'


def _alignment(rows: Sequence[Sequence[str]], column: int) -> str:
    cells = [row[column] for row in rows if column < len(row)]
    return ' class="number"' if cells and all(is_number(cell) for cell in cells) else ''
