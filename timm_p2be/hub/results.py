"""The results that a card states: the run's own, those of benchmark files on these very weights, those measured now."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform

from timm_p2be.files import content_of, file_sha256
from timm_p2be.hub.run_folder import Run
from timm_p2be.robustness.evaluation.predictions import judge
from timm_p2be.robustness.evaluation.results import read_json
from timm_p2be.robustness.evaluation.runner import Memory
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

PUBLISHED = 'as published'
ROUNDED = 'before rounding to float16'

_BATCH = 250
_ALL = 15  # corruptions in the benchmark's mean, arXiv 1903.12261


def collect_results(
    run: Run,
    files: Sequence[Path],
    weights: Mapping[str, str],
    split: str,
    images: int | None,
    measured: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the results.json of a run: `clean`, `corruptions`, `attacks` and, by sha256, names of the `files`.

    The clean error is the one `measured` now, if there is one. Else those of the weights as they are published go
    before those from before rounding, and then the one on more images; the run's own is on all `images` of the `split`.

    Args:
        run: its error comes from summary.csv.
        files: of `timm-p2be benchmark`, at most one of corruptions.
        weights: sha256 of a file of weights, or of the weights themselves -> `PUBLISHED` or `ROUNDED`. The first
            entry is what became of the run's own weights.
    """
    clean: list[dict[str, Any]] = []
    corruptions: dict[str, Any] | None = None
    attacks: list[dict[str, Any]] = []
    if run.error is not None:
        source = f'summary.csv of the run, after epoch {run.epoch}'
        own = next(iter(weights.values()))
        clean.append({'error': run.error, 'images': images, 'split': split, 'weights': own, 'source': source})
    for path in files:
        content = read_json(path, 'corruptions', 'attacks')
        is_corruptions = content['kind'] == 'corruptions'
        if is_corruptions and corruptions:
            raise ValueError(f'{path} is a second file of corruptions. Pass one, and files of attacks as you like.')
        with content_of(f'--results {path}'):
            if is_corruptions:
                corruptions, measured_clean = _corruptions(path, content, weights)
            else:
                found, measured_clean = _attacks(path, content, weights)
                attacks += found
        clean += [measured_clean] if measured_clean else []
    clean.sort(key=lambda entry: (entry['weights'] == PUBLISHED, entry['images'] or math.inf), reverse=True)
    return {
        'clean': measured or (clean[0] if clean else None),
        'corruptions': corruptions,
        'attacks': attacks or None,
        'files': {file_sha256(path): path.name for path in files},  # of attacks many share a name
    }


def measure_clean(
    model: PixelModel, images: ImageSet, config: Mapping[str, Any], split: str, state: str
) -> dict[str, Any]:
    """Return the error of a model on clean images, computed in float32.

    The labeled images in their `source` may have any size: `config` has input size, interpolation, crop and mean, by
    which timm's validate.py resizes and crops them. `split` and `state` say in words what images and weights they are.
    """
    memory, transform = Memory(say=print), create_transform(**config, normalize=False)  # uint8 pixels
    numbers = model.numbers_of(images.class_names, images.num_classes, images.name)
    wrong = 0
    for start in range(0, len(images), _BATCH):
        pairs = [images.source[index] for index in range(start, min(start + _BATCH, len(images)))]
        pixels = torch.stack([transform(image.convert('RGB')) for image, _ in pairs])
        labels = torch.tensor([int(label) for _, label in pairs])
        correct, _ = judge(model, pixels, labels if numbers is None else numbers[labels], memory)
        wrong += int((~correct).sum())
    split = f'{split}, first {len(images)} images' if images.limit is not None else split
    return _clean('measured in float32 by timm-p2be publish', wrong / len(images), len(images), split, state)


def _measured(path: Path, models: Sequence[Mapping[str, Any]], weights: Mapping[str, str]) -> tuple[str, str]:
    """Return name and state of the first model of a benchmark that has our weights."""
    for model in models:
        for key in ('checkpoint_sha256', 'weights_sha256'):
            if model.get(key) in weights:
                return model['name'], weights[model[key]]
    shown = ', '.join(
        f'{model["name"]} {model.get("checkpoint_sha256") or model.get("weights_sha256")}' for model in models
    )
    raise ValueError(
        f'--results {path} measured other weights (sha256 {shown}); those of the run, and those to publish, have '
        f'{", ".join(weights)}. Measure them: timm-p2be benchmark ... --model NAME=FILE.'
    )


def _corruptions(
    path: Path, content: Mapping[str, Any], weights: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what a corruption benchmark found, and its error on clean images."""
    config = content['config']
    name, state = _measured(path, config['models'], weights)
    summary = content['summary'].get(name) or {}
    if not content['complete'] or summary.get('mean_corruption_error') is None:
        raise ValueError(f'--results {path} is incomplete. Run the benchmark to its end with the same --output.')
    label = config['data']['label']
    if len(summary['mean_over']) != _ALL or len(config['severities']) != 5:
        label += f' ({len(summary["mean_over"])} corruptions, severities {config["severities"]})'
    mce = summary.get('mce_alexnet')
    corruptions = {
        'label': label,
        'images': config['data']['images'],
        'mean_corruption_error': _percent(summary['mean_corruption_error']),
        'mce': None if mce is None else _percent(mce),
        'by_corruption': {corruption: _percent(error) for corruption, error in summary['corruptions'].items()},
        'weights': state,
        'precision': config['precision'],
    }
    measured = content['clean'].get(name)
    if not measured:
        return corruptions, None
    split = f'{config["clean"]["name"]}, {config["clean"]["subset"]}'
    clean = _clean(path.name, measured['error'], measured['examples'], split, state)
    return corruptions, {**clean, 'precision': config['precision']}


def _attacks(
    path: Path, content: Mapping[str, Any], weights: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return what an attack benchmark found, the worst case last, and its error on clean images."""
    _, state = _measured(path, [content['model']], weights)
    settings, worst = content['settings'], content['worst_case']
    unfinished = [
        attack['name'] for attack in content['attacks'] if 'accuracy' not in content['alone'].get(attack['name'], {})
    ]
    if unfinished or (worst and not worst.get('complete')):
        raise ValueError(f'--results {path} is incomplete. Run the benchmark to its end with the same --output.')
    entries = [(attack['name'], attack['eps'], content['alone'][attack['name']]) for attack in content['attacks']]
    entries += [('worst case of all', settings['eps'], worst)] if worst else []
    attacks = [
        {
            'name': name,
            'eps': eps,
            'images': entry['count'],
            **{key: _percent(entry[key]) for key in ('accuracy', 'low', 'high')},
            'weights': state,
        }
        for name, eps, entry in entries
    ]
    cleans = [content['clean'][key] for key in ('alone', 'worst_case') if key in content['clean']]
    measured = max(cleans, key=lambda entry: entry['count'])
    split = f'{content["data"]["name"]}, first {measured["count"]} images'
    return attacks, _clean(path.name, 1 - measured['accuracy'], measured['count'], split, state)


def _clean(source: str, error: float, images: int, split: str, state: str) -> dict[str, Any]:
    return {'error': _percent(error), 'images': int(images), 'split': split, 'weights': state, 'source': source}


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
