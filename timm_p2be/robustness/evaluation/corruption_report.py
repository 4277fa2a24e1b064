"""What the report of a corruption benchmark says, from the content of its result file."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from timm_p2be.files import content_of
from timm_p2be.robustness.corruptions import CATEGORIES, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.evaluation.report import Curves, HeatMap, Report, Section, Table, surroundings

Content = Mapping[str, Any]

_MEASURES = (
    'Mean corruption error: the plain mean. mCE (Hendrycks & Dietterich, arXiv 1903.12261), for ImageNet-C only: the '
    "errors of each corruption, summed over severities, relative to AlexNet's, mean over the 15 corruptions; AlexNet "
    'is 100. Its errors are those of google-research/augmix, imagenet.py. ECE: expected calibration error, 15 bins '
    '(Guo et al., arXiv 1706.04599).'
)


@content_of('The result file')
def corruption_report(content: Content) -> Report:
    """Return the report of all models of a finished benchmark."""
    curves = _curves(content)
    sections = [
        Section('Summary, %', notes=[*warnings(content)], texts=[_MEASURES], table=_summary(content)),
        Section('Error by corruption, mean over severities, %', table=_by_corruption(content)),
        Section('Error by severity, mean over corruptions, %', table=_by_severity(curves[0]), figures=curves),
        Section('Models', table=_models(content), figures=_heat_maps(content)),
        Section('Settings', table=_settings(content)),
    ]
    return Report(f'Corruption robustness on {content["config"]["data"]["label"]}', sections)


def warnings(content: Content) -> Iterator[str]:
    """Yield what a reader of the figures must know."""
    config = content['config']
    data, severities, names, clean = config['data'], config['severities'], config['corruptions'], config['clean']
    counted = [name for name in names if name not in EXTRA_CORRUPTIONS]
    if not data['official']:
        yield (
            f'The images are {data["label"]} ({data["source"]}), not the published benchmark: no seed of that is '
            'known, and figures differ a little. Compare models measured on the same images only.'
        )
    if data['subset'] != 'all':
        yield (
            f'Subset: {data["subset"]}. The standard error of a model at one severity of one corruption is up to '
            f'{50 / math.sqrt(data["images"]):.1f} points; published figures are of all images.'
        )
    if set(severities) != set(SEVERITIES) or set(counted) != set(CORRUPTIONS):
        yield (
            f'Means are over {len(counted)} corruptions ({len(set(counted) & set(CORRUPTIONS))} of the 15) at '
            f'severities {", ".join(map(str, severities))}.'
        )
    if len(counted) < len(names):
        yield 'Extra corruptions are shown, and enter neither the mean corruption error nor mCE.'
    if config['precision'] != 'float32':
        yield f'Models were run in {config["precision"]}.'
    if clean is None:
        yield 'No clean images were given, hence no clean error.'
    elif clean['images'] != data['images']:
        yield (
            f'The clean images are {clean["images"]}, the corrupted ones {data["images"]} at each severity: not the '
            'same images.'
        )


def _summary(content: Content) -> Table:
    header = ['model', 'clean error', 'mean corruption error (unnormalized)', 'mCE (AlexNet)']
    rows = []
    for model, summary in content['summary'].items():
        clean = content['clean'].get(model, {})
        values = [clean.get('error'), summary['mean_corruption_error'], summary['mce_alexnet']]
        rows.append([model, *map(_percent, [*values, clean.get('ece'), summary['mean_ece']])])
    return Table([*header, 'ECE clean', 'ECE corrupted'], rows)


def _by_corruption(content: Content) -> Table:
    summaries = content['summary'].values()
    rows = [['clean', *(_percent(content['clean'].get(model, {}).get('error')) for model in content['summary'])]]
    for name in content['config']['corruptions']:
        title = f'{name} (extra)' if name in EXTRA_CORRUPTIONS else name
        rows.append([title, *(_percent(figures['corruptions'][name]) for figures in summaries)])
    for name in CATEGORIES:
        rows.append([f'mean of {name}', *(_percent(figures['categories'][name]) for figures in summaries)])
    for title, key in (('mean corruption error', 'mean_corruption_error'), ('mCE (AlexNet)', 'mce_alexnet')):
        rows.append([title, *(_percent(figures[key]) for figures in summaries)])
    return Table(['', *content['summary']], rows)


def _by_severity(curves: Curves) -> Table:
    rows = [
        [f'{points[0][0]:g}' if points[0][0] else 'clean', *(f'{error:.1f}' for _, error in points)]
        for points in zip(*curves.series.values(), strict=True)
    ]
    return Table(['severity', *curves.series], rows)


def _curves(content: Content) -> list[Curves]:
    """Return, for all corruptions and for each complete category, each model's error in % at each severity."""
    names = content['config']['corruptions']
    groups = {'all corruptions': [name for name in names if name not in EXTRA_CORRUPTIONS] or names}
    groups |= {name: [*group] for name, group in CATEGORIES.items() if set(group) <= set(names)}
    charts = []
    for title, group in groups.items():
        series = {}
        for model, results in content['results'].items():
            series[model] = [(0.0, 100 * content['clean'][model]['error'])] if content['clean'] else []
            for severity in content['config']['severities']:
                errors = [results[name][str(severity)]['error'] for name in group]
                series[model].append((float(severity), 100 * sum(errors) / len(errors)))
        charts.append(Curves(title, series, 'severity (0: clean)', 'error in %'))
    return charts


def _heat_maps(content: Content) -> list[HeatMap]:
    """Return each model's heat map, all of one scale."""
    severities = [str(severity) for severity in content['config']['severities']]
    values = {
        model: [[100 * levels[severity]['error'] for severity in severities] for levels in corruptions.values()]
        for model, corruptions in content['results'].items()
    }
    top = max(cell for lines in values.values() for line in lines for cell in line)
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


def _percent(fraction: float | None) -> str:
    return '-' if fraction is None else f'{100 * fraction:.1f}'
