"""The result file of a corruption benchmark: its configuration, and what may be added to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.corruptions.corrupted_data import CorruptedSet
from timm_p2be.robustness.evaluation.corruption_metrics import calibration_gaps, expected_calibration_error, summarize
from timm_p2be.robustness.evaluation.results import SCHEMA_VERSION, environment, pack_bits, read_json
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

CLEAN = 'clean'  # where a corruption is named: none


def configuration(
    models: Sequence[PixelModel],
    data: CorruptedSet,
    clean: ImageSet | None,
    names: Sequence[str],
    severities: Sequence[int],
    amp_dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Return all that figures depend on; runs with equal ones may be continued."""
    config = {
        'models': [
            model.describe()
            | {'weights_sha256': weights_sha256(model.model.state_dict()), 'input_size': list(model.input_size)}
            for model in models
        ],
        'data': data.describe(),
        'clean': clean.describe() if clean is not None else None,
        'corruptions': list(names),
        'severities': list(severities),
        'precision': str(amp_dtype or torch.float32).removeprefix('torch.'),
    }
    return json.loads(json.dumps(config))  # as it will be read back


def start_content(config: dict[str, Any], output: Path | None, overwrite: bool) -> dict[str, Any]:
    """Return the results so far: those of the file if it has the same configuration, else none.

    Raises:
        ValueError: the file has another configuration.
    """
    surroundings = environment()
    if output is None or overwrite or not output.exists():
        empty: dict[str, Any] = {'clean': {}, 'results': {}, 'summary': {}, 'complete': False}
        head = {'schema_version': SCHEMA_VERSION, 'kind': 'corruptions'}
        return head | {'config': config, 'environment': surroundings} | empty
    content = read_json(output, 'corruptions')
    now = config | {'versions': surroundings['versions']}
    then = content.get('config', {}) | {'versions': content.get('environment', {}).get('versions')}
    changes = list(_differences(then, now))
    if changes:
        shown = '; '.join(changes[:4]) + (f'; and {len(changes) - 4} more' if len(changes) > 4 else '')
        raise ValueError(
            f'{output} has results of another configuration ({shown}). Choose another --output, or pass --overwrite to '
            'start afresh.'
        )
    return content


def _differences(then: Any, now: Any, path: str = '') -> Iterator[str]:
    """Yield what differs between two JSON values, as 'data.seed: 0 -> 1'."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}):
            yield from _differences(then.get(key), now.get(key), f'{path}.{key}' if path else key)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, f'{path}[{number}]')
    elif then != now:
        yield f'{path}: {then} -> {now}'


def is_done(content: Mapping[str, Any], name: str, severity: int) -> bool:
    """Return whether all models have figures of one set."""
    results = content['results']
    return bool(results) and all(str(severity) in model.get(name, {}) for model in results.values())


def figures_of(correct: NDArray[np.bool_], confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of one model on one set, JSON values only.

    Args:
        correct: (N,) whether the model is right.
        confidence: (N,) its largest probability.
    """
    gaps = calibration_gaps(confidence, correct)
    return {
        'examples': len(correct),
        'error': int((~correct).sum()) / len(correct),
        'ece': round(expected_calibration_error(gaps, len(correct)), 8),
        'ece_gaps': gaps,
        'correct': pack_bits(correct),
    }


def store_figures(content: dict[str, Any], name: str, severity: int, results: Mapping[str, Any], sets: int) -> None:
    """Add the figures of one set, and bring the summary up to date."""
    for model, figures in results.items():
        if name == CLEAN:
            content['clean'][model] = figures
        else:
            content['results'].setdefault(model, {}).setdefault(name, {})[str(severity)] = figures
    for model, corruptions in content['results'].items():
        errors = {
            name: {int(severity): figures['error'] for severity, figures in severities.items()}
            for name, severities in corruptions.items()
        }
        eces = [figures['ece'] for severities in corruptions.values() for figures in severities.values()]
        content['summary'][model] = summarize(errors) | {'mean_ece': sum(eces) / len(eces)}
        content['complete'] = len(eces) == sets
