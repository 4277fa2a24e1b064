"""What the report of a corruption benchmark says, from the content of its result file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from timm_p2be.files import content_of
from timm_p2be.robustness.corruptions import CATEGORIES, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.evaluation.entries import compared, image_errors
from timm_p2be.robustness.evaluation.report import Curves, Report, Section, Table, surroundings
from timm_p2be.robustness.evaluation.results import interval, unpack_bits

Content = Mapping[str, Any]

_MEASURES = (
    'Mean corruption error: the plain mean. mCE (Hendrycks & Dietterich, arXiv 1903.12261), for ImageNet-C only: the '
    "errors of each corruption, summed over severities, relative to AlexNet's, mean over the 15 corruptions; AlexNet "
    'is 100. Its errors are those of google-research/augmix, imagenet.py. ECE: expected calibration error, 15 bins '
    "(Guo et al., arXiv 1706.04599). In parentheses: the 95 % interval for the choice of images, Wilson's of "
    'the clean error, else that of the normal distribution, with every image as one; another seed of the training is '
    'not covered.'
)


@content_of('The result file')
def corruption_report(content: Content) -> Report:
    """Return the report of all models of a finished benchmark."""
    curves = _curves(content)
    sections = [
        Section('Summary, %', notes=[*warnings(content)], texts=[_MEASURES], table=_summary(content)),
        Section('Error by corruption, mean over severities, %', table=_by_corruption(content)),
        Section('Error by severity, mean over corruptions, %', table=_by_severity(content), figures=curves),
        Section('Models', table=_models(content)),
        Section('Settings', table=_settings(content)),
    ]
    stopped = '' if content['complete'] else ' (incomplete)'
    return Report(f'Corruption robustness on {content["config"]["data"]["label"]}{stopped}', sections)


def warnings(content: Content) -> Iterator[str]:
    """Yield what a reader of the figures must know."""
    config = content['config']
    data, severities, names, clean = config['data'], config['severities'], config['corruptions'], config['clean']
    counted = _counted(content)
    if not content['complete']:
        yield 'Incomplete: the run was stopped; the same command again does the other corruptions.'
    if not data['official']:
        yield (
            f'The images are {data["label"]} ({data["source"]}), not the published benchmark: no seed of that is '
            'known, and figures differ a little. Compare models measured on the same images only.'
        )
    if data['subset'] != 'all':
        yield f'Subset: {data["subset"]}; published figures are of all images.'
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


def _counted(content: Content) -> list[str]:
    """Return the corruptions of which means are."""
    return [name for name in content['config']['corruptions'] if name not in EXTRA_CORRUPTIONS]


def _summary(content: Content) -> Table:
    header = ['model', 'clean error', 'mean corruption error (unnormalized)', 'mCE (AlexNet)']
    header += ['ECE clean', 'ECE corrupted']
    models = [*content['summary']]
    if len(models) > 1:
        header.append(f'mean error above that of {models[0]}, paired 95 % interval')
    rows = []
    for model, difference in zip(models, compared([content]), strict=True):
        clean, summary = content['clean'].get(model, {}), content['summary'][model]
        row = [model, _clean(content, model), _error(content, model, _counted(content))]
        row += map(_percent, [summary['mce_alexnet'], clean.get('ece'), summary['mean_ece']])
        rows.append([*row, difference][: len(header)])
    return Table(header, rows)


def _clean(content: Content, model: str) -> str:
    """Return a model's clean error and its interval, in percent."""
    found = content['clean'].get(model)
    return _with_interval(~unpack_bits(found['correct'], found['examples'])) if found else '-'


def _error(content: Content, model: str, names: Sequence[str], severities: Sequence[int] | None = None) -> str:
    """Return a model's mean error over corruptions and its interval, in percent."""
    return _with_interval(image_errors(content, model, names, severities)) if names else '-'


def _with_interval(images: NDArray[Any]) -> str:
    return f'{round(100 * float(images.mean()), 9):.1f} ({interval(images.astype(float))})'


def _by_corruption(content: Content) -> Table:
    summaries, done = content['summary'], content['config']['corruptions']
    rows = [['clean', *(_clean(content, model) for model in summaries)]]
    for name in done:
        title = f'{name} (extra)' if name in EXTRA_CORRUPTIONS else name
        rows.append([title, *(_error(content, model, [name]) for model in summaries)])
    for name, group in CATEGORIES.items():
        whole = set(group) <= set(done)
        rows.append([f'mean of {name}', *(_error(content, model, group) if whole else '-' for model in summaries)])
    rows.append(['mean corruption error', *(_error(content, model, _counted(content)) for model in summaries)])
    rows.append(['mCE (AlexNet)', *(_percent(figures['mce_alexnet']) for figures in summaries.values())])
    return Table(['', *summaries], rows)


def _by_severity(content: Content) -> Table:
    models, names = [*content['summary']], _counted(content)
    rows = [['clean', *(_clean(content, model) for model in models)]] if content['clean'] else []
    for severity in content['config']['severities']:
        rows.append([str(severity), *(_error(content, model, names, [severity]) for model in models)])
    return Table(['severity', *models], rows)


def _curves(content: Content) -> list[Curves]:
    """Return, for all corruptions and for each complete category, each model's error in % at each severity."""
    names = content['config']['corruptions']
    groups = {'all corruptions': _counted(content) or names}
    groups |= {name: [*group] for name, group in CATEGORIES.items() if set(group) <= set(names)}
    charts = []
    for title, group in groups.items():
        series = {}
        for model in content['results']:
            series[model] = [(0.0, 100 * content['clean'][model]['error'])] if content['clean'] else []
            for severity in content['config']['severities']:
                error = image_errors(content, model, group, [severity]).mean()
                series[model].append((float(severity), 100 * float(error)))
        charts.append(Curves(title, series, 'severity (0: clean)', 'error in %'))
    return charts


def _models(content: Content) -> Table:
    header = ['model', 'architecture', 'encoding', 'classes', 'parameters', 'mean', 'std', 'weights, SHA-256']
    rows = []
    for model in content['config']['models']:
        row = [model[key] for key in ('name', 'architecture', 'encoding', 'num_classes', 'parameters')]
        row += [' '.join(f'{value:g}' for value in model[key]) for key in ('mean', 'std')]
        rows.append([*map(str, row), model['weights_sha256'][:16]])
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
