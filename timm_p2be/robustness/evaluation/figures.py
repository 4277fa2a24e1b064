"""Figures of reports: matplotlib's SVG, the same for the same data, as an address that a page can hold."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from timm_p2be.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]


class Curves(NamedTuple):
    """Curves over one x axis, as {name: points}; y starts at 0."""

    title: str
    series: Mapping[str, Points]
    x_label: str
    y_label: str
    log: bool = False

    @property
    def description(self) -> str:
        """What there is to see."""
        return f'{self.title}: {self.y_label} over {self.x_label}, {", ".join(self.series)}'

    def draw(self) -> str:
        """Return the picture as a data URI."""
        return _svg(6.4, 3.6, self._paint)

    def _paint(self, axes: 'Axes') -> None:
        for number, (name, points) in enumerate(self.series.items()):
            style = ('-', '--', ':', '-.')[number // 10 % 4]  # the colors repeat after 10
            axes.plot([x for x, _ in points], [y for _, y in points], style, marker='o', markersize=4, label=name)
        ticks = sorted({x for points in self.series.values() for x, _ in points})
        axes.set_xscale('log' if self.log and ticks and ticks[0] > 0 else 'linear')
        axes.set_xticks(ticks, [f'{x:g}' for x in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.grid(alpha=0.3)
        axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)


class HeatMap(NamedTuple):
    """A grid of numbers, colored up to `top`; None leaves a cell empty."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    top: float

    @property
    def description(self) -> str:
        """What there is to see."""
        return f'{self.title}: a number for each of {", ".join(self.rows)} at {", ".join(self.columns)}'

    def draw(self) -> str:
        """Return the picture as a data URI."""
        return _svg(6.4, 0.6 + 0.25 * len(self.rows), self._paint)

    def _paint(self, axes: 'Axes') -> None:
        numbers = [[float('nan') if value is None else value for value in row] for row in self.values]
        axes.imshow(numbers, cmap='OrRd', vmin=0, vmax=1.3 * self.top or 1, aspect='auto')
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                axes.text(x, y, '-' if value is None else f'{value:.1f}', ha='center', va='center')
        axes.set_xticks(range(len(self.columns)), self.columns)
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)


def _svg(width: float, height: float, paint: Callable[['Axes'], None]) -> str:
    """Return what `paint` draws on axes of a size in inches."""
    matplotlib = require('matplotlib', extra='robustness')
    figures = require('matplotlib.figure', extra='robustness')  # without pyplot there is no window
    style: dict[Any, Any] = {'svg.hashsalt': 'timm-p2be', 'svg.fonttype': 'none', 'text.parse_math': False}
    style |= {'font.size': 9, 'font.sans-serif': ['DejaVu Sans']}  # comes with matplotlib
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):  # the same data give the same bytes
        figure = figures.Figure(figsize=(width, height))
        paint(figure.add_subplot())
        figure.savefig(buffer, format='svg', bbox_inches='tight', metadata={'Date': None})
    return 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()
