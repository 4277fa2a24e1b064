"""The report of a benchmark, whichever it is: text, tables and figures, as Markdown and as one page of HTML.

Figures are matplotlib's SVG, the same for the same data, as an address that the page can hold.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from timm_p2be.extras import require
from timm_p2be.files import atomic_write
from timm_p2be.robustness.images import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NUMBER = re.compile(r'(?:[-+]?[\d.,]+(?: to | ?%| \(|\)|$)+)+|-')
Points = Sequence[tuple[float, float]]


class Picture(Protocol):
    """What a report can show: `draw` returns it as a data URI."""

    @property
    def title(self) -> str: ...

    def draw(self) -> str: ...


class Curves(NamedTuple):
    """Curves over one x axis, as {name: points}; y starts at 0."""

    title: str
    series: Mapping[str, Points]
    x_label: str
    y_label: str
    log: bool = False

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


class Attacked(NamedTuple):
    """An image, uint8 (H, W, 3), what an attack made of it, and gray plus 16 times the difference, side by side."""

    title: str
    clean: Pixels
    attacked: Pixels

    def draw(self) -> str:
        """Return the picture as a data URI."""
        difference = np.clip(128 + 16 * (self.attacked.astype(int) - self.clean), 0, 255).astype(np.uint8)
        scale = max(1, 128 // len(difference))
        images = [image.repeat(scale, 0).repeat(scale, 1) for image in (self.clean, self.attacked, difference)]
        apart = [np.pad(image, ((0, 0), (0, 8), (0, 0)), constant_values=255) for image in images]
        return png_uri(Image.fromarray(np.concatenate(apart, axis=1)))


def png_uri(image: Image.Image) -> str:
    """Return an image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()


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


@dataclass
class Table:
    """A table of texts."""

    header: list[str]
    rows: list[list[str]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold nothing but numbers, percentages, intervals, and the dash of a missing one."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return [all(_NUMBER.fullmatch(str(cell)) for cell in column) for column in columns]


@dataclass
class Section:
    """A part of a report, in the order of its fields."""

    heading: str
    level: int = 2  # of the heading
    notes: Sequence[str] = ()  # what the reader must know first
    texts: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Picture] = ()  # drawn for HTML only


@dataclass
class Report:
    """A whole report; texts of result files may hold anything, and are escaped."""

    title: str
    sections: list[Section]

    def markdown(self) -> str:
        """Return the report as Markdown, without figures."""
        return _MARKDOWN.get_template('report.md.jinja').render(report=self)

    def html(self) -> str:
        """Return the report as a page without scripts and links to anything; its figures need matplotlib."""
        return _HTML.get_template('report.html.jinja').render(report=self)

    def write(self, folder: Path) -> None:
        """Write report.md and report.html."""
        for name, text in {'report.md': self.markdown(), 'report.html': self.html()}.items():
            with atomic_write(folder / name) as file:
                file.write(text.encode())


def surroundings(environment: Mapping[str, Any]) -> str:
    """Return where a benchmark ran, in words."""
    versions = ', '.join(f'{name} {version}' for name, version in environment['versions'].items() if version)
    return f'Python {environment["python"]} on {environment["machine"]}, {environment["threads"]} threads, {versions}'


def _escape_markdown(value: object) -> str:
    """Return a text that ends no cell, opens no HTML and no link."""
    return re.sub(r'([|[])', r'\\\1', str(value)).replace('<', '&lt;').replace('\n', ' ')


_environment = partial(
    Environment,
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_HTML = _environment(autoescape=True)
_MARKDOWN = _environment(finalize=_escape_markdown)
