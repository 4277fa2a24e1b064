"""A grid of training runs as data: axes, flags, what is measured, claims and their rule; read from YAML."""

import csv
import itertools
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from timm_p2be.files import Field, Schema, check_schema, content_of, read_yaml, shown
from timm_p2be.robustness.corruptions import CORRUPTIONS
from timm_p2be.training.arguments import Arguments, command_line, flag_groups, parse_args

TABLES = Path(__file__).with_name('tables')
SEED, DATASET = 'seed', 'dataset'  # axes with a meaning of their own
CORRUPTED = ('corrupted', 'mce', *CORRUPTIONS)
FIGURES = ('clean', *CORRUPTED, 'lspga')  # what can be shown of a run, percent
_ANY: Field = ('any value', lambda value: True)
_NAMED: Field = ('a mapping of names, at least one', lambda value: isinstance(value, dict) and bool(value))
_FREE = ('title', 'dataset', 'images', 'flags', 'columns', 'show', 'compare', 'rule', 'claims', 'paper', 'picture')
_GRID: Schema = {**dict.fromkeys(_FREE, _ANY), 'axes': _NAMED, 'budgets': _NAMED}
_CLAIM: Schema = dict.fromkeys(('says', 'source', 'lower', 'than', 'error', 'within', 'where'), _ANY)
_OPTIONAL: dict[str, Any] = {'paper': None, 'picture': '', 'rule': '', 'claims': []}
_BUDGET: dict[str, Any] = {'flags': '', 'axes': {}, 'corruption_images': None, 'attack_images': None}
_DATA = ('dataset', 'train_split', 'val_split', 'train_num_samples', 'val_num_samples')  # flags that change images

Key = tuple[str, ...]  # values on the axes but the seed
Axes = dict[str, dict[str, str]]  # axis -> value -> text that takes the place of {axis} in the flags


class Claim(NamedTuple):
    """A claim of the paper: `lower` has a lower `error` than `than`, or is at most `within` points above it."""

    says: str
    source: str
    lower: str
    than: str
    error: str
    within: float = 0.0
    where: Mapping[str, str] = {}  # values of other axes that it is about; default: all
    axis: str = ''  # of `lower` and `than`


@dataclass(frozen=True)
class Run:
    """One training: its value on every axis, and the flags of train.py."""

    cell: dict[str, str]
    words: list[str]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return '-'.join(re.sub(r'[^\w.]+', '_', value) for value in self.cell.values())

    @cached_property
    def arguments(self) -> Arguments:
        """Its flags, parsed.

        Raises:
            ValueError: train.py refuses them; it has said why.
        """
        try:
            return parse_args(self.words)
        except SystemExit as error:
            raise ValueError(f'Run {self.name}: train.py refuses its flags for the reason above.') from error


@dataclass(frozen=True)
class Grid:
    """Runs, what is measured of them, and how the page shows it."""

    title: str
    axes: Axes  # in the order of the runs' cells
    runs: list[Run]
    columns: Sequence[str]  # axes that go into the columns of the tables
    show: Sequence[str]  # of `FIGURES`
    compare: str  # axis whose values are compared pair by pair
    rule: str = ''
    claims: Sequence[Claim] = ()
    scale: str = ''  # in what the runs differ from the paper's
    settings: Mapping[str, str] = field(default_factory=dict)  # title -> text, for the page
    images: Mapping[str, int] = field(default_factory=dict)  # of the paper's data set: 'train' and 'test'
    corruption_images: int | None = None  # first images of the validation split; None takes all
    attack_images: int | None = None
    picture: str = ''  # 'codes', or an axis of numbers that curves are drawn over
    printed: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)  # the paper's figures


@content_of('The grid')
def read_grid(
    path: Path,
    budget: str | None = None,
    data: Mapping[str, Any] = {},
    embedding: str | None = '',
    seeds: Sequence[int] = (),
) -> Grid:
    """Return the grid of a file at one of its budgets, by default the first.

    Args:
        data: flags of train.py by their names, such as {'data_dir': 'data'}, that every run gets. With a 'dataset' the
            axis of this name, where there is one, keeps its first value only.
        embedding: table of codes for flags with {embedding}; None leaves that open, for runs that are only planned.
        seeds: instead of the budget's.

    Raises:
        ValueError: a key or value that is not understood, or no run.
    """
    content = _read(path)
    budget = next(iter(content['budgets'])) if budget is None else budget
    if budget not in content['budgets']:
        raise ValueError(f'Got budget {budget!r}; {path.name} has {", ".join(content["budgets"])}.')
    size = _checked(content['budgets'][budget] or {}, dict.fromkeys(_BUDGET, _ANY), _BUDGET, f'{path}: budget {budget}')
    all_axes = {name: _values(values) for name, values in content['axes'].items()}
    _check_members(size['axes'], all_axes, f'{path}: budget {budget}: axes')
    axes = all_axes | {name: _values(values) for name, values in size['axes'].items()}
    if seeds:
        axes[SEED] = _values([*seeds])
    if DATASET in data and DATASET in axes:
        axes[DATASET] = dict([*axes[DATASET].items()][:1])
    if empty := [name for name, values in axes.items() if not values]:
        raise ValueError(f'{path}: budget {budget} yields no run: no values on {", ".join(empty)}.')
    template, data_flags = f'{content["flags"]} {size["flags"]}', command_line({**data})
    runs = _runs(template, axes, data_flags, embedding, str(path))
    if embedding and embedding not in runs[-1].words:
        raise ValueError(f'{path}: no run starts from a table of codes; leave out --embedding {embedding}.')
    changes = [f'budget {budget}'] if budget != 'paper' else []
    if data.keys() & {*_DATA}:
        other = Path(data[DATASET]).name if data.get(DATASET) else 'other images'
        changes.append(f'{other} instead of {content["dataset"]}')
    return Grid(
        **{key: content[key] for key in ('title', 'columns', 'show', 'compare', 'rule', 'images', 'picture')},
        corruption_images=size['corruption_images'],
        attack_images=size['attack_images'],
        axes=axes,
        runs=runs,
        claims=[_claim(entry, all_axes, content['show'], str(path)) for entry in content['claims']],
        scale=', '.join(changes),
        settings={'budget': budget, 'flags': template, 'data': shlex.join(data_flags), **_axes_in_words(axes)},
        printed=_printed(content['paper'], len(axes) - 1, str(path)) if content['paper'] else {},
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a grid's file, its keys and names checked."""
    content = _checked(read_yaml(path), _GRID, _OPTIONAL, str(path))
    axes = content['axes']
    _check_members([*content['columns'], content['compare'], SEED], axes, f'{path}: axes')
    _check_members(content['show'], FIGURES, f'{path}: show')
    _check_members([content['picture'] or 'codes'], ['codes', *axes], f'{path}: picture')
    for name in axes:
        if f'{{{name}}}' not in content['flags']:
            raise ValueError(f'{path}: the axis {name} has no place {{{name}}} in flags, so its values change nothing.')
    return content


def _axes_in_words(axes: Axes) -> dict[str, str]:
    """Return what the values on each axis stand for."""
    return {axis: '; '.join(f'{value}: {text}' for value, text in values.items()) for axis, values in axes.items()}


def _values(values: Any) -> dict[str, str]:
    """Return value -> text of an axis, given as such or as a list of texts."""
    if not isinstance(values, dict | list):
        raise ValueError(f'Got {values!r} as values of an axis; a list, or a mapping of values to texts is allowed.')
    pairs = values.items() if isinstance(values, dict) else zip(values, values, strict=True)
    return {str(value): str(text) for value, text in pairs}


def _runs(template: str, axes: Axes, data_flags: Sequence[str], embedding: str | None, where: str) -> list[Run]:
    runs = []
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        try:
            text = template.format_map({'embedding': '{embedding}', **{name: axes[name][cell[name]] for name in axes}})
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f'{where}: flags: {error} is no axis; there are {", ".join(axes)}.') from error
        if '{embedding}' in text and embedding == '':
            raise ValueError('These runs start from a table of codes: name it by --embedding ID_OR_FOLDER.')
        try:
            words = [word.replace('{embedding}', embedding or '{embedding}') for word in shlex.split(text)]
        except ValueError as error:
            raise ValueError(f'{where}: the flags {shown(text)} cannot be split as a shell would: {error}.') from error
        words += data_flags
        if not {'--data-dir', '--dataset'} & {flag for flag, _ in flag_groups(words)}:
            words += ['--data-dir', 'data']  # of the data set that a recipe names
        runs.append(Run(cell, words))
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f'{where}: two runs would share a folder; let values differ in letters, digits, _ or dots.')
    return runs


def _printed(table: str, depth: int, where: str) -> dict[Key, dict[str, str]]:
    """Return the figures of a table of the paper as they are printed."""
    with (TABLES / 'paper.csv').open(encoding='utf-8', newline='') as file:
        rows = {tuple(row['cell'].split('/')): row for row in csv.DictReader(file) if row['table'] == str(table)}
    if {len(key) for key in rows} != {depth}:
        raise ValueError(f'{where}: paper: paper.csv has no table {table!r} of {depth} axes beside the seed.')
    figures = {
        key: {name: [text for text in (row.get(name), row.get(f'{name}_std')) if text] for name in FIGURES}
        for key, row in rows.items()
    }
    return {key: {name: ' ± '.join(texts) for name, texts in row.items() if texts} for key, row in figures.items()}


def _claim(entry: Any, axes: Axes, show: Sequence[str], path: str) -> Claim:
    entry = _checked(entry, _CLAIM, {'within': 0.0, 'where': {}}, f'{path}: claim')
    entry |= {'lower': str(entry['lower']), 'than': str(entry['than'])}
    entry['where'] = {name: str(value) for name, value in entry['where'].items()}
    where = f'{path}: claim {entry["says"]!r}'
    _check_members([entry['error']], show, where)
    for name, value in entry['where'].items():
        _check_members([value], axes.get(name, ()), where)
    axis = next((name for name, values in axes.items() if {entry['lower'], entry['than']} <= values.keys()), None)
    if axis is None:
        raise ValueError(f'{where}: no axis has the values {entry["lower"]} and {entry["than"]}.')
    return Claim(**entry, axis=axis)


def _checked(content: Any, schema: Schema, defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a mapping that has all keys of a schema, of which `defaults` may be left out."""
    content = {**defaults, **content} if isinstance(content, dict) else content
    check_schema(content, schema, where)
    return dict(content)


def _check_members(names: Collection[str], allowed: Collection[str], where: str) -> None:
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f'{where}: got {unknown}; allowed are {list(allowed)}.')
