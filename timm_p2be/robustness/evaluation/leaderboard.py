"""A page that ranks the models of many result files, each with those measured on the same images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from timm_p2be.files import content_of
from timm_p2be.robustness.corruptions import EXTRA_CORRUPTIONS
from timm_p2be.robustness.evaluation.attack_checks import run_checks, suspected
from timm_p2be.robustness.evaluation.report import Report, Section, Table
from timm_p2be.robustness.evaluation.results import proportion, unpack_bits

_LIMITS = (
    'Intervals are of 95 % and cover the choice of images only: not training again with another seed. Differences are '
    'paired, image by image, to the model above all others.',
    'Under attack every error is a lower bound: of the attacks that were run, on a model that may mask gradients.',
)


class _Entry(NamedTuple):
    model: Mapping[str, Any]
    clean: float | None  # error, 0..1
    errors: NDArray[np.float64]  # of each image, 0..1
    note: str


@content_of('The result file')
def leaderboard(contents: Sequence[Mapping[str, Any]]) -> Report:
    """Return the page of the contents of finished result files, of corruptions and of attacks.

    Raises:
        ValueError: a file is not finished.
    """
    boards: dict[tuple[str, str], list[_Entry]] = {}
    for content in contents:
        for place, entry in _attacked(content) if content['kind'] == 'attacks' else _corrupted(content):
            boards.setdefault(place, []).append(entry)
    sections = [
        Section(title, texts=[f'Images: SHA-256 {images}'], table=_ranked(entries))
        for (title, images), entries in sorted(boards.items())
    ]
    return Report('Leaderboard', [*sections, Section('Limits', texts=_LIMITS)])


def _corrupted(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], _Entry]]:
    config, data = content['config'], content['config']['data']
    if not content['complete']:
        raise ValueError(f'A result file on {data["label"]} is not finished. Finish it by the command that began it.')
    names = [name for name in config['corruptions'] if name not in EXTRA_CORRUPTIONS] or config['corruptions']
    cells = f'{len(names)} corruptions x {len(config["severities"])} severities'
    title = f'Corruptions: {data["label"]}, {data["images"]} images, {cells}'
    for model in config['models']:
        name = model['name']
        results = [content['results'][name][kind][str(level)] for kind in names for level in config['severities']]
        right = np.mean([unpack_bits(result['correct'], result['examples']) for result in results], axis=0)
        clean = content['clean'].get(name, {}).get('error')
        yield (title, data['fingerprint']), _Entry(model, clean, 1.0 - right.astype(float), '')


def _attacked(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], _Entry]]:
    worst, data = content['worst_case'], content['data']
    if worst and not worst.get('complete'):
        raise ValueError(f'The result file of {content["model"]["name"]} is not finished. Finish it first.')
    settings = content['settings']
    correct = unpack_bits(content['clean']['correct'], max(settings['alone'], settings['worst_case']))
    if worst:
        fell = ~unpack_bits(worst['standing'], worst['count'])
    else:  # every attack alone, on fewer images
        alone = [content['alone'][attack['name']]['success'] for attack in content['attacks']]
        fell = np.any([unpack_bits(success, settings['alone']) for success in alone], axis=0)
    wrong = ~correct[: len(fell)]
    levels = f'{settings["eps"]} level{"s" if settings["eps"] > 1 else ""}'
    title = f'All attacks within {levels}: {data["name"]}, first {len(fell)} images'
    masked = 'masking suspected' if suspected(run_checks(content)) else ''
    yield (title, data['fingerprint']), _Entry(content['model'], wrong.mean(), (wrong | fell).astype(float), masked)


def _ranked(entries: Sequence[_Entry]) -> Table:
    header = ['', 'model', 'encoding', 'weights, SHA-256', 'clean error, %', 'error, %', '95 % interval']
    rows = []
    ranked = sorted(entries, key=lambda entry: entry.errors.mean())
    for place, entry in enumerate(ranked, start=1):
        model, clean = entry.model, '-' if entry.clean is None else f'{100 * entry.clean:.1f}'
        row = [str(place), model['name'], model['encoding'], model['weights_sha256'][:12], clean]
        row += [f'{100 * entry.errors.mean():.1f}', _interval(entry.errors)]
        rows.append([*row, _normal(entry.errors - ranked[0].errors) if place > 1 else '-', entry.note])
    return Table([*header, 'more than the first', ''], rows)


def _interval(values: NDArray[np.float64]) -> str:
    """Return the 95 % interval of the mean of values of as many images, in percent."""
    if set(values) <= {0.0, 1.0}:
        share = proportion(values.astype(bool))
        return f'{100 * share["low"]:.1f} to {100 * share["high"]:.1f}'
    return _normal(values)


def _normal(values: NDArray[np.float64]) -> str:
    mean, half = 100 * values.mean(), 196 * values.std(ddof=1) / np.sqrt(len(values))
    return f'{mean - half:.1f} to {mean + half:.1f}'
