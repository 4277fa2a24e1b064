"""What the report of a corruption benchmark says, from the content of its result file."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from timm_p2be.robustness.corruptions import CATEGORIES, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.evaluation.figures import Curves, HeatMap
from timm_p2be.robustness.evaluation.report import Report, Section, Table, surroundings

Content = Mapping[str, Any]

_MEASURES = (
    'Mean corruption error: the plain mean. mCE (Hendrycks & Dietterich, arXiv 1903.12261): the errors of each '
    "corruption, summed over severities, relative to AlexNet's, mean over the 15 corruptions; AlexNet is 100. Its "
    'errors are those of google-research/augmix, imagenet.py. ECE: expected calibration error, 15 bins (Guo et al., '
    'arXiv 1706.04599).'
)


def corruption_report(content: Content) -> Report:
    """Return the report of all models; the content of a result file may be incomplete."""
    curves = _curves(content)
    sections = [
        Section('Summary, %', notes=warnings(content), texts=[_MEASURES], table=_summary(content)),
        Section('Error by corruption, mean over severities, %', table=_by_corruption(content)),
        Section('Error by severity, mean over corruptions, %', table=_by_severity(curves[0]), figures=curves),
        Section('Models', table=_models(content), figures=_heat_maps(content)),
        Section('Settings', table=_settings(content)),
    ]
    return Report(f'Corruption robustness on {content["config"]["data"]["label"]}', sections)


def warnings(content: Content) -> list[str]:
    """Return what a reader of the figures must know."""
    config = content['config']
    data, severities, names, clean = config['data'], config['severities'], config['corruptions'], config['clean']
    counted = [name for name in names if name not in EXTRA_CORRUPTIONS]
    done = sum(len(levels) for levels in next(iter(content['results'].values()), {}).values())
    unusual = set(severities) != set(SEVERITIES) or set(counted) != set(CORRUPTIONS)
    other = clean is not None and clean['images'] != data['images']
    remarks = [
        (
            not content['complete'],
            f'Not finished: {done} of {len(names) * len(severities)} sets measured. Run the same command to go on.',
        ),
        (
            not data['official'],
            f'The images are {data["label"]} ({data["source"]}), not the published benchmark: no seed of that is '
            'known, and figures differ a little. Compare models measured on the same images only.',
        ),
        (
            data['subset'] != 'all',
            f'Subset: {data["subset"]}. The standard error of a model at one severity of one corruption is up to '
            f'{50 / math.sqrt(data["images"]):.1f} points; published figures are of all images.',
        ),
        (
            unusual,
            f'Means are over {len(counted)} corruptions ({len(set(counted) & set(CORRUPTIONS))} of the 15) at '
            f'severities {", ".join(map(str, severities))}; mCE needs the 15 at severities 1 to 5.',
        ),
        (
            len(counted) < len(names),
            'Extra corruptions are shown, and enter neither the mean corruption error nor mCE.',
        ),
        (
            data['suite'] == 'cifar',
            "mCE divides by AlexNet's errors on ImageNet-C. CIFAR-C is reported as the mean corruption error, "
            'unnormalized.',
        ),
        (config['precision'] != 'float32', f'Models were run in {config["precision"]}.'),
        (clean is None, 'No clean images were given, hence no clean error.'),
        (
            other,
            f'The clean images are {(clean or {}).get("images")}, the corrupted ones {data["images"]} at each '
            'severity: not the same images.',
        ),
    ]
    return [remark for holds, remark in remarks if holds]


def _summary(content: Content) -> Table:
    header = ['model', 'clean error', 'mean corruption error (unnormalized)', 'mCE (AlexNet)']
    rows = []
    for model in _names(content):
        clean, summary = content['clean'].get(model, {}), content['summary'].get(model, {})
        values = (clean.get('error'), summary.get('mean_corruption_error'), summary.get('mce_alexnet'))
        rows.append([model, *map(_text, (*values, clean.get('ece'), summary.get('mean_ece')))])
    return Table([*header, 'ECE clean', 'ECE corrupted'], rows)


def _by_corruption(content: Content) -> Table:
    models, summary, rows = _names(content), content['summary'], []

    def add(title: str, value: Callable[[Content], float | None], part: Content = summary) -> None:
        rows.append([title, *(_text(value(part.get(model, {}))) for model in models)])

    add('clean', lambda figures: figures.get('error'), content['clean'])
    for name in content['config']['corruptions']:
        title = f'{name} (extra)' if name in EXTRA_CORRUPTIONS else name
        add(title, lambda figures, name=name: figures.get('corruptions', {}).get(name))  # type: ignore[misc]
    for name in CATEGORIES:
        add(f'mean of {name}', lambda figures, name=name: figures.get('categories', {}).get(name))  # type: ignore[misc]
    add('mean corruption error', lambda figures: figures.get('mean_corruption_error'))
    add('mCE (AlexNet)', lambda figures: figures.get('mce_alexnet'))
    return Table(['', *models], rows)


def _by_severity(curves: Curves) -> Table:
    points = {model: dict(line) for model, line in curves.series.items()}
    levels = sorted({level for line in points.values() for level in line})
    rows = [
        [f'{level:g}' if level else 'clean', *(_number(line.get(level)) for line in points.values())]
        for level in levels
    ]
    return Table(['severity', *points], rows)


def _curves(content: Content) -> list[Curves]:
    """Return, for all corruptions and for each complete category, each model's error in % at each severity."""
    counted = [name for name in content['config']['corruptions'] if name not in EXTRA_CORRUPTIONS]
    groups = {'all corruptions': counted}
    groups |= {name: [*group] for name, group in CATEGORIES.items() if set(group) <= set(counted)}
    charts = []
    for title, group in groups.items():
        series = {}
        for model in _names(content):
            clean, corruptions = content['clean'].get(model), content['results'].get(model, {})
            points = [(0.0, 100 * clean['error'])] if clean else []
            for severity in content['config']['severities']:
                cells = [corruptions.get(name, {}).get(str(severity)) for name in group]
                if cells and all(cells):
                    points.append((float(severity), 100 * sum(cell['error'] for cell in cells) / len(cells)))
            series[model] = points
        charts.append(Curves(title, series, 'severity (0: clean)', 'error in %'))
    return charts


def _heat_maps(content: Content) -> list[HeatMap]:
    """Return each model's heat map, all of one scale."""
    severities = [str(severity) for severity in content['config']['severities']]
    values = {
        model: [[_percent(levels.get(s, {}).get('error')) for s in severities] for levels in corruptions.values()]
        for model, corruptions in content['results'].items()
    }
    top = max((cell for lines in values.values() for line in lines for cell in line if cell is not None), default=0.0)
    return [
        HeatMap(f'{model}: error in %', [*content['results'][model]], severities, lines, top)
        for model, lines in values.items()
    ]


def _models(content: Content) -> Table:
    header = ['model', 'architecture', 'encoding', 'classes', 'parameters', 'mean', 'std', 'checkpoint sha256']
    rows = []
    for model in content['config']['models']:
        row = [model[key] for key in ('name', 'architecture', 'encoding', 'num_classes', 'parameters')]
        row += [' '.join(f'{value:g}' for value in model[key]) for key in ('mean', 'std')]
        rows.append([*map(str, row), (model['checkpoint_sha256'] or 'none')[:16]])
    return Table(header, rows)


def _settings(content: Content) -> Table:
    config = content['config']
    data, clean = config['data'], config['clean']
    rows = {
        'data': data['label'],
        'source': f'{data["source"]}, {"published" if data["official"] else "not the published"} images',
        'suite': data['suite'],
        'images per severity': f'{data["images"]} ({data["subset"]})',
        'transform': data['transform'],
        'seed of the corruptions': 'none' if data['seed'] is None else str(data['seed']),
        'corruptions': ', '.join(config['corruptions']),
        'severities': ', '.join(map(str, config['severities'])),
        'clean images': f'{clean["name"]}, {clean["images"]} ({clean["subset"]}), {clean["transform"]}'
        if clean
        else 'none',
        'precision': config['precision'],
        'environment': surroundings(content['environment']),
    }
    return Table(['setting', 'value'], [[*row] for row in rows.items()])


def _names(content: Content) -> list[str]:
    return [model['name'] for model in content['config']['models']]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}'


def _text(value: float | None) -> str:
    return _number(_percent(value))
