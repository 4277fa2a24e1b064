"""The report of a corruption benchmark, as Markdown and as a page of HTML, from the content of its result file."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm_p2be.robustness.corruptions import CATEGORIES, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.evaluation.html import grid, heat_map, is_number, line_chart, page, paragraph, table

Table = tuple[list[str], list[list[str]]]  # header, rows
Content = Mapping[str, Any]

_SOURCES = (
    'Mean corruption error: the plain mean. mCE (Hendrycks & Dietterich, arXiv 1903.12261): the errors of each '
    "corruption, summed over severities, relative to AlexNet's, mean over the 15 corruptions; AlexNet is 100. Its "
    'errors are those of google-research/augmix, imagenet.py. ECE: expected calibration error, 15 bins (Guo et al., '
    'arXiv 1706.04599).'
)


def markdown(content: Content) -> str:
    """Return the report as Markdown.

    Args:
        content: of a result file, complete or not.
    """
    parts = [f'# {_title(content)}', *(f'> {warning}' for warning in warnings(content))]
    for heading, (header, rows) in _tables(content):
        parts += [f'## {heading}', _markdown_table(header, rows)]
    return '\n\n'.join([*parts, _SOURCES]) + '\n'


def html(content: Content) -> str:
    """Return the report as one page of HTML with curves and heat maps, without links to anything.

    Args:
        content: of a result file, complete or not.
    """
    notes = ''.join(paragraph(warning, note=True) for warning in warnings(content))
    (summary, rows), (by_corruption, others), *rest = _tables(content)
    curves = {title: line_chart(series, 'severity (0: clean)', 'error in %') for title, series in _curves(content)}
    sections = [
        (summary, notes + table(*rows) + paragraph(_SOURCES)),
        (by_corruption, table(*others)),
        ('Error by severity', grid(curves)),
        ('Error by corruption and severity, %', grid(_heat_maps(content))),
        *((heading, table(*lines)) for heading, lines in rest),
    ]
    return page(_title(content), sections)


def warnings(content: Content) -> list[str]:
    """Return what a reader of the figures must know."""
    config = content['config']
    data, severities, names = config['data'], config['severities'], config['corruptions']
    found = []
    done = sum(len(levels) for levels in next(iter(content['results'].values()), {}).values())
    if not content['complete']:
        found.append(
            f'Not finished: {done} of {len(names) * len(severities)} sets measured. Run the same command to go on.'
        )
    if not data['official']:
        found.append(
            f'The images are {data["label"]} ({data["source"]}), not the published benchmark: no seed of that is '
            'known, and figures differ a little. Compare models measured on the same images only.'
        )
    if data['subset'] != 'all':
        error = 50 / math.sqrt(data['images'])
        found.append(
            f'Subset: {data["subset"]}. The standard error of a model at one severity of one corruption is up to '
            f'{error:.1f} points; published figures are of all images.'
        )
    counted = [name for name in names if name not in EXTRA_CORRUPTIONS]
    if set(severities) != set(SEVERITIES) or set(counted) != set(CORRUPTIONS):
        levels = ', '.join(map(str, severities))
        found.append(
            f'Means are over {len(counted)} corruptions ({len(set(counted) & set(CORRUPTIONS))} of the 15) at '
            f'severities {levels}; mCE needs the 15 at severities 1 to 5.'
        )
    if set(names) & set(EXTRA_CORRUPTIONS):
        found.append('Extra corruptions are shown, and enter neither the mean corruption error nor mCE.')
    if data['suite'] == 'cifar':
        found.append(
            "mCE divides by AlexNet's errors on ImageNet-C. CIFAR-C is reported as the mean corruption error, "
            'unnormalized.'
        )
    if config['precision'] != 'float32':
        found.append(f'Models were run in {config["precision"]}.')
    if config['clean'] is None:
        found.append('No clean images were given, hence no clean error.')
    elif config['clean']['images'] != data['images']:
        found.append(
            f'The clean images are {config["clean"]["images"]}, the corrupted ones {data["images"]} at each severity: '
            'not the same images.'
        )
    return found


def _title(content: Content) -> str:
    return f'Corruption robustness on {content["config"]["data"]["label"]}'


def _tables(content: Content) -> list[tuple[str, Table]]:
    return [
        ('Summary, %', _summary(content)),
        ('Error by corruption, mean over severities, %', _by_corruption(content)),
        ('Error by severity, mean over corruptions, %', _by_severity(content)),
        ('Models', _models(content)),
        ('Settings', _settings(content)),
    ]


def _summary(content: Content) -> Table:
    header = [
        'model',
        'clean error',
        'mean corruption error (unnormalized)',
        'mCE (AlexNet)',
        'ECE clean',
        'ECE corrupted',
    ]
    rows = []
    for model in _names(content):
        clean, figures = content['clean'].get(model, {}), content['summary'].get(model, {})
        values = (
            clean.get('error'),
            figures.get('mean_corruption_error'),
            figures.get('mce_alexnet'),
            clean.get('ece'),
            figures.get('mean_ece'),
        )
        rows.append([model, *map(_text, values)])
    return header, rows


def _by_corruption(content: Content) -> Table:
    models = _names(content)

    def row(name: str, value: Callable[[str], float | None]) -> list[str]:
        return [name, *(_text(value(model)) for model in models)]

    summary = content['summary']
    rows = [row('clean', lambda model: content['clean'].get(model, {}).get('error'))]
    for name in content['config']['corruptions']:
        title = f'{name} (extra)' if name in EXTRA_CORRUPTIONS else name
        rows.append(row(title, lambda model, name=name: summary.get(model, {}).get('corruptions', {}).get(name)))  # type: ignore[misc]
    for category in CATEGORIES:
        title = f'mean of {category}'
        rows.append(row(title, lambda model, key=category: summary.get(model, {}).get('categories', {}).get(key)))  # type: ignore[misc]
    rows.append(row('mean corruption error', lambda model: summary.get(model, {}).get('mean_corruption_error')))
    rows.append(row('mCE (AlexNet)', lambda model: summary.get(model, {}).get('mce_alexnet')))
    return ['', *models], rows


def _by_severity(content: Content) -> Table:
    series = dict(_curves(content))['all corruptions']
    models = _names(content)
    levels = sorted({x for points in series.values() for x, _ in points})
    rows = [
        [f'{level:g}' if level else 'clean', *(_plain(dict(series.get(model, [])).get(level)) for model in models)]
        for level in levels
    ]
    return ['severity', *models], rows


def _curves(content: Content) -> list[tuple[str, dict[str, list[tuple[float, float]]]]]:
    """Return, for all corruptions and for each complete category, each model's error in % at each severity."""
    counted = [name for name in content['config']['corruptions'] if name not in EXTRA_CORRUPTIONS]
    groups: dict[str, Sequence[str]] = {'all corruptions': counted}
    groups |= {name: group for name, group in CATEGORIES.items() if set(group) <= set(counted)}
    charts = []
    for title, group in groups.items():
        series = {}
        for model, corruptions in content['results'].items():
            clean = content['clean'].get(model)
            points = [(0.0, 100 * clean['error'])] if clean else []
            for severity in _severities(content):
                cells = [corruptions.get(name, {}).get(str(severity)) for name in group]
                if cells and all(cells):
                    points.append((float(severity), 100 * sum(cell['error'] for cell in cells) / len(cells)))
            series[model] = points
        charts.append((title, series))
    return charts


def _heat_maps(content: Content) -> dict[str, str]:
    """Return each model's heat map, all of one scale."""
    severities = [str(severity) for severity in content['config']['severities']]
    values = {
        model: [[_percent(levels.get(s, {}).get('error')) for s in severities] for levels in corruptions.values()]
        for model, corruptions in content['results'].items()
    }
    top = max((cell for lines in values.values() for line in lines for cell in line if cell is not None), default=None)
    return {model: heat_map(list(content['results'][model]), severities, lines, top) for model, lines in values.items()}


def _models(content: Content) -> Table:
    header = ['model', 'architecture', 'encoding', 'classes', 'parameters', 'mean', 'std', 'checkpoint sha256']
    rows = [
        [
            model['name'],
            model['architecture'],
            model['encoding'],
            str(model['num_classes']),
            str(model['parameters']),
            ' '.join(f'{value:g}' for value in model['mean']),
            ' '.join(f'{value:g}' for value in model['std']),
            (model['checkpoint_sha256'] or 'none')[:16],
        ]
        for model in content['config']['models']
    ]
    return header, rows


def _settings(content: Content) -> Table:
    config, surroundings = content['config'], content['environment']
    data, clean = config['data'], config['clean']
    versions = ', '.join(f'{name} {version}' for name, version in surroundings['versions'].items() if version)
    rows = [
        ['data', data['label']],
        ['source', f'{data["source"]}, {"published" if data["official"] else "not the published"} images'],
        ['suite', data['suite']],
        ['images per severity', f'{data["images"]} ({data["subset"]})'],
        ['transform', data['transform']],
        ['seed of the corruptions', 'none' if data['seed'] is None else str(data['seed'])],
        ['corruptions', ', '.join(config['corruptions'])],
        ['severities', ', '.join(map(str, config['severities']))],
        [
            'clean images',
            'none'
            if clean is None
            else f'{clean["name"]}, {clean["images"]} ({clean["subset"]}), {clean["transform"]}',
        ],
        ['precision', config['precision']],
        ['versions', f'Python {surroundings["python"]} on {surroundings["machine"]}, {versions}'],
    ]
    return ['setting', 'value'], rows


def _names(content: Content) -> list[str]:
    return [model['name'] for model in content['config']['models']]


def _severities(content: Content) -> list[int]:
    return content['config']['severities']


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _plain(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}'


def _text(value: float | None) -> str:
    return _plain(_percent(value))


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ['---:' if all(is_number(row[column]) for row in rows) else '---' for column in range(len(header))]
    return '\n'.join(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in (header, marks, *rows)
    )
