"""The page of a grid: verdicts on the claims, our figures beside the paper's, paired differences, pictures."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.files import write_json
from timm_p2be.hub.find_table import find_table
from timm_p2be.hub.pictures import codes_picture
from timm_p2be.reproduce.grid import SEED, Grid, Key
from timm_p2be.reproduce.verdicts import Difference, Outcome, Spread, decide, paired, spread
from timm_p2be.robustness.evaluation.report import Curves, Picture, Report, Section, Table, png_uri, surroundings
from timm_p2be.robustness.evaluation.results import environment

Spreads = dict[Key, dict[str, Spread]]
_MEASURES = {
    'clean': 'Clean: error after the last epoch on the validation split, as train.py measured it.',
    'corrupted': 'Corrupted: mean error over 15 corruptions x 5 severities, after the last epoch, in float32.',
    'mce': "mCE, and the CE of each corruption: relative to AlexNet's errors (docs/protocol.md, section 2).",
    'lspga': "LS-PGA: error within 8 levels under the paper's attack, 7 steps from one start, a lower bound of the "
    'worst case; for pixel values (RGB) PGD of as many steps.',
}


class Codes(NamedTuple):
    """A table of codes, drawn as the paper's Fig. 2."""

    title: str
    codes: Tensor

    def draw(self) -> str:
        """Return the picture as a data URI."""
        return png_uri(codes_picture(self.codes, self.title))


def write_page(grid: Grid, outcomes: Sequence[Outcome], output: Path) -> Report:
    """Write report.md, report.html and results.json of a whole grid, and return the report."""
    axes = [axis for axis in grid.axes if axis != SEED]
    cells: dict[Key, dict[str, list[float]]] = {}  # a diverged run has no figures
    for outcome in outcomes:
        cell = cells.setdefault(tuple(outcome[axis] for axis in axes), {})
        for name, value in outcome['figures'].items():
            cell.setdefault(name, []).append(value)
    ours = {key: {name: spread(values) for name, values in cell.items()} for key, cell in cells.items()}
    verdicts = [
        (claim, paired(outcomes, grid.axes, claim.axis, claim.lower, claim.than, claim.error, claim.where))
        for claim in grid.claims
    ]
    suffix = f' ({grid.scale})' if grid.scale else ''
    sections = [
        Section(
            f'Claims of the paper{suffix}' if grid.rule else 'Notes',
            notes=_notes(grid, outcomes),
            texts=[grid.rule] if grid.rule else [],
            table=_verdicts(grid, verdicts) if verdicts else None,
        ),
        Section(
            f'Ours: mean and standard deviation, seeds {", ".join(grid.axes[SEED])}, %',
            texts=[text for name, text in _MEASURES.items() if name in grid.show],
            table=_pivot(grid, axes, ours),
            figures=_drawn(grid, ours, axes, output),
        ),
        Section("The paper's, %", table=_pivot(grid, axes, grid.printed)),
        Section('Paired differences by seed, points, 95 % t interval', table=_differences(grid, outcomes, axes)),
        Section('Runs', table=_runs(grid, outcomes)),
        Section('Settings', table=Table(['setting', 'value'], [[*row] for row in _settings(grid).items()])),
    ]
    shown = [s for s in sections if s.notes or s.texts or (s.table and s.table.rows)]
    report = Report(f'{grid.title}{suffix}', shown)
    report.write(output)
    content: dict[str, Any] = {'schema_version': 1, 'kind': 'reproduction', 'title': report.title, 'runs': [*outcomes]}
    content['claims'] = [
        {**claim._asdict(), 'difference': difference and difference._asdict(), 'verdict': decide(claim, difference)}
        for claim, difference in verdicts
    ]
    write_json(output / 'results.json', {**content, 'settings': _settings(grid), 'environment': environment()})
    return report


def _pivot(grid: Grid, axes: Sequence[str], cells: Mapping[Key, Mapping[str, Spread | str]]) -> Table:
    """Return cells as a table: rows and columns by the axes, one column a figure."""
    table: dict[Key, dict[str, str]] = {}
    for key, found in cells.items():
        across = [value for axis, value in zip(axes, key, strict=True) if axis in grid.columns]
        row = table.setdefault(tuple(v for axis, v in zip(axes, key, strict=True) if axis not in grid.columns), {})
        row |= {', '.join([*across, name]): str(found.get(name, '-')) for name in grid.show}
    header = [*dict.fromkeys(name for row in table.values() for name in row)]
    body = [[*key, *(row.get(name, '-') for name in header)] for key, row in table.items()]
    return Table([*(axis for axis in axes if axis not in grid.columns), *header], body)


def _shown(difference: Difference | None) -> tuple[str, str]:
    """Return a difference and its interval in words."""
    if difference is None:
        return '-', '-'
    interval = '-' if difference.low is None else f'{difference.low:+.2f} to {difference.high:+.2f}'
    return f'{difference.mean:+.2f}', interval


def _verdicts(grid: Grid, verdicts: Sequence[tuple[Any, Difference | None]]) -> Table:
    rows = []
    for claim, difference in verdicts:
        where = (f'{axis} {value}' for axis, value in claim.where.items())
        what = ', '.join([f'{claim.error}: {claim.lower} - {claim.than}', *where])
        verdict = decide(claim, difference) + (f' ({grid.scale})' if grid.scale else '')
        figures = [*_shown(difference), str(difference.seeds if difference else 0), f'{claim.within:g}']
        rows.append([claim.says, claim.source, what, *figures, verdict])
    return Table(['claim', 'source', 'difference', 'points', '95 % interval', 'seeds', 'below', 'verdict'], rows)


def _differences(grid: Grid, outcomes: Sequence[Outcome], axes: Sequence[str]) -> Table:
    others = [axis for axis in axes if axis != grid.compare]
    rows = []
    for values in itertools.product(*(grid.axes[axis] for axis in others)):
        where = dict(zip(others, values, strict=True))
        for than, lower in itertools.combinations(grid.axes[grid.compare], 2):
            row = [*values, f'{lower} - {than}']
            for name in grid.show:
                row += _shown(paired(outcomes, grid.axes, grid.compare, lower, than, name, where))
            rows.append(row)
    figures = [text for name in grid.show for text in (name, '95 % interval')]
    return Table([*others, grid.compare, *figures], rows)


def _drawn(grid: Grid, ours: Spreads, axes: Sequence[str], output: Path) -> list[Picture]:
    """Return the pictures that the grid asks for: Fig. 2, or curves over an axis of numbers."""
    if grid.picture == 'codes':
        noise = torch.randn((256, 64), generator=torch.Generator().manual_seed(0))
        learned = [(run.name, output / run.name / 'last.pth.tar') for run in grid.runs]
        return [
            Codes('Random codes, the signs of N(0, 1)', (noise >= 0).float()),
            Codes('One-hot, M = 64', onehot_codes(64)),
            Codes('Thermometer, M = 64', thermometer_codes(64)),
            *(Codes(f'P2BE, {name}', find_table(str(file)).file.codes) for name, file in learned if file.is_file()),
        ]
    if not grid.picture:
        return []
    place, curves = axes.index(grid.picture), []
    for name in grid.show:
        series: dict[str, list[tuple[float, float]]] = {}
        for key, found in ours.items():
            if name in found:
                other = ', '.join(key[:place] + key[place + 1 :]) or name
                series.setdefault(other, []).append((float(grid.axes[grid.picture][key[place]]), found[name].mean))
        curves.append(Curves(f'{name}, mean over seeds', series, grid.picture, 'error in %', log=True))
    return [*curves]


def _runs(grid: Grid, outcomes: Iterable[Outcome]) -> Table:
    rows = []
    for outcome in outcomes:
        figures = [f'{outcome["figures"][name]:.2f}' if name in outcome['figures'] else '-' for name in grid.show]
        about = [outcome[axis] for axis in grid.axes]
        rows.append([*about, outcome['state'], str(outcome.get('epochs', '-')), *figures])
    return Table([*grid.axes, 'state', 'epochs', *grid.show], rows)


def _notes(grid: Grid, outcomes: Iterable[Outcome]) -> list[str]:
    notes = [f'Not the runs of the paper: {grid.scale}.'] if grid.scale else []
    for name, images in (('corrupted', grid.corruption_images), ('lspga', grid.attack_images)):
        if images is not None and name in grid.show:
            notes.append(f'{name}: the first {images} images of the validation split only.')
    diverged = [outcome for outcome in outcomes if outcome['state'] == 'diverged']
    if diverged:
        names = ', '.join('-'.join(outcome[axis] for axis in grid.axes) for outcome in diverged)
        notes.append(f'Diverged, and in no mean: {names}.')
    return notes


def _settings(grid: Grid) -> dict[str, str]:
    return {**grid.settings, 'environment': surroundings(environment())}
