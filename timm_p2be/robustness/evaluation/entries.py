"""The models of a result file, each with its error on every image, to be compared on the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from timm_p2be.robustness.corruptions import EXTRA_CORRUPTIONS
from timm_p2be.robustness.evaluation.attack_checks import run_checks, suspected
from timm_p2be.robustness.evaluation.results import interval_of_differences, unpack_bits


class Entry(NamedTuple):
    """A model's place on a page of models that saw the same images."""

    model: Mapping[str, Any]
    clean: float | None  # error, 0..1
    errors: NDArray[np.float64]  # of each image, 0..1
    note: str


def entries_of(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Entry]]:
    """Yield each model of a result file and where it is ranked: a title, and the fingerprint of the images."""
    yield from _attacked(content) if content['kind'] == 'attacks' else _corrupted(content)


def compared(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return by how much each model errs more often than the first, as an interval; '-' on other images."""
    (place, first), *others = (entry for content in contents for entry in entries_of(content))
    return ['-', *(interval_of_differences(e.errors - first.errors) if at == place else '-' for at, e in others)]


def _corrupted(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Entry]]:
    config, data = content['config'], content['config']['data']
    names = [name for name in config['corruptions'] if name not in EXTRA_CORRUPTIONS] or config['corruptions']
    cells = f'{len(names)} corruptions x {len(config["severities"])} severities'
    title = f'Corruptions: {data["label"]}, {data["images"]} images, {cells}'
    for model in config['models']:
        name = model['name']
        clean = content['clean'].get(name, {}).get('error')
        yield (title, data['fingerprint']), Entry(model, clean, image_errors(content, name, names), '')


def image_errors(
    content: Mapping[str, Any], model: str, names: Sequence[str], severities: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return on which share of some corruptions, at all `severities` or some, a model is wrong, 0..1 for each image."""
    levels = severities or content['config']['severities']
    results = [content['results'][model][name][str(level)] for name in names for level in levels]
    return 1.0 - np.mean([unpack_bits(result['correct'], result['examples']) for result in results], axis=0)


def _attacked(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Entry]]:
    worst, data = content['worst_case'], content['data']
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
    yield (title, data['fingerprint']), Entry(content['model'], wrong.mean(), (wrong | fell).astype(float), masked)
