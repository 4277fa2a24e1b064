"""The report of a benchmark, whichever it is: text, tables and figures, as Markdown and as one page of HTML."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from timm_p2be.files import atomic_write
from timm_p2be.robustness.evaluation.figures import Curves, HeatMap


@dataclass
class Table:
    """A table of texts."""

    header: list[str]
    rows: list[list[str]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold nothing but numbers, percentages, and the dash of a missing one."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return [all(re.fullmatch(r'[-+]?[\d.,]+ ?%?|-', cell) for cell in column) for column in columns]


@dataclass
class Section:
    """A part of a report, in the order of its fields."""

    heading: str
    level: int = 2  # of the heading
    notes: Sequence[str] = ()  # what the reader must know first
    texts: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Curves | HeatMap] = ()  # drawn for HTML only


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
