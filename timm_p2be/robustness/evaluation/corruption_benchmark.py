"""Measures models under common corruptions: every model sees the same images, every figure is kept, runs resume."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from timm_p2be.files import content_of
from timm_p2be.robustness.corruptions import SUITES
from timm_p2be.robustness.corruptions.corrupted_sets import Batch, CorruptedSet, load_batches, spans_of
from timm_p2be.robustness.evaluation.corruption_metrics import calibration_gaps, summarize
from timm_p2be.robustness.evaluation.predictions import Outcome, check_size, judge
from timm_p2be.robustness.evaluation.results import Bits, ResultFile, pack_bits
from timm_p2be.robustness.evaluation.runner import Runner, runner
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel, as_pixel_model

CLEAN = 'clean'  # where a corruption is named: none


class CorruptionResults(ResultFile):
    """What several models made of the same images; all methods that add to it bring the summary up to date."""

    kind = 'corruptions'

    def is_done(self, name: str, severity: int) -> bool:
        """Return whether all models have figures of one set."""
        results = self.content['results']
        if name == CLEAN:
            return bool(self.content['clean'])
        return bool(results) and all(str(severity) in model.get(name, {}) for model in results.values())

    def add(self, name: str, severity: int, figures: Mapping[str, Any]) -> None:
        """Add the figures of one set, model by model."""
        content, config = self.content, self.content['config']
        for model, found in figures.items():
            if name == CLEAN:
                content['clean'][model] = found
            else:
                content['results'].setdefault(model, {}).setdefault(name, {})[str(severity)] = found
        count = len(config['corruptions']) * len(config['severities'])
        for model, corruptions in content['results'].items():
            content['summary'][model] = _summary(corruptions, config['data']['suite'])
            content['complete'] = sum(map(len, corruptions.values())) == count
        self.write()


def finished_part(content: dict[str, Any]) -> dict[str, Any]:
    """Return a content of the corruptions alone that are done at all severities, as if there were no others."""
    config, per_model = content['config'], content['results']
    is_done = CorruptionResults(content).is_done
    names = [name for name in config['corruptions'] if all(is_done(name, level) for level in config['severities'])]
    results = {model: {name: found[name] for name in names} for model, found in per_model.items()}
    summary = {model: _summary(found, config['data']['suite']) for model, found in results.items() if names}
    return {**content, 'config': {**config, 'corruptions': names}, 'results': results, 'summary': summary}


def _summary(corruptions: Mapping[str, Any], suite: str) -> dict[str, Any]:
    """Return the summary of a model's figures, of all its sets so far."""
    errors = {
        name: {int(severity): found['error'] for severity, found in severities.items()}
        for name, severities in corruptions.items()
    }
    eces = [found['ece'] for severities in corruptions.values() for found in severities.values()]
    return summarize(errors, suite) | {'mean_ece': sum(eces) / len(eces)}


def benchmark_corruptions(
    models: Sequence[PixelModel | torch.nn.Module],
    data: CorruptedSet,
    clean: ImageSet | None = None,
    batch_size: int = 128,
    workers: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    amp_dtype: torch.dtype | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Measure models on corrupted images.

    Results are written after every set (one corruption at one severity), and a run that finds results of the same
    configuration does only what is missing. Started by torchrun, the ranks share the images.

    Args:
        models: timm models, or as `PixelModel` with unique names.
        clean: the same images without corruption, for the clean error; None leaves it out.
        batch_size: images at a time; halved for a model that runs out of memory.
        output: JSON file of the results; None keeps them in memory.
        amp_dtype: torch.bfloat16 or torch.float16 for autocast; None computes in float32.

    Returns:
        The content of the file, as docs/protocol.md describes.

    Raises:
        OSError: the results cannot be written; those of the sets before are intact.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f'Got batch_size={batch_size}, workers={workers}; take at least 1 image and 0 workers.')
    wrapped = [as_pixel_model(model) for model in models]
    _check_models(wrapped, data, clean)
    config = {
        'models': [{**model.describe(), 'input_size': model.input_size} for model in wrapped],
        'data': data.describe(),
        'clean': clean.describe() if clean is not None else None,
        'corruptions': data.names,
        'severities': data.severities,
        'precision': str(amp_dtype or torch.float32).removeprefix('torch.'),
    }
    nothing: dict[str, Any] = {'clean': {}, 'results': {}, 'summary': {}, 'complete': False}
    with runner('image', show) as run:
        results = run.ranks.open(
            lambda: CorruptionResults.open(output, {'config': config}, nothing, overwrite, wrapped[0].device)
        )
        jobs = [(CLEAN, 0)] if clean is not None else []
        jobs += [(name, severity) for name in data.names for severity in data.severities]
        with content_of(str(output)):  # which another run may have begun
            jobs = [job for job in jobs if not results.is_done(*job)]
        counts = {CLEAN: len(clean) if clean is not None else 0, **dict.fromkeys(data.names, len(data))}
        spans = {name: run.ranks.share(spans_of(count, batch_size)) for name, count in counts.items()}
        run.progress.expect(sum(len(span) for name, _ in jobs for span in spans[name]))
        for name, severity in jobs:
            source = clean if name == CLEAN and clean is not None else data
            if isinstance(source, ImageSet):
                batches = load_batches(source.__getitem__, spans[name], workers)
            else:
                batches = source.batches(name, severity, spans[name], workers)
            numbers = [model.numbers_of(source.class_names, source.num_classes, 'the data') for model in wrapped]
            figures = _measure(wrapped, numbers, batches, f'{name} {severity or ""}', amp_dtype, run)
            with content_of(str(output)):
                results.add(name, severity, figures)
    return results.content


def _measure(
    models: Sequence[PixelModel],
    numbers: Sequence[torch.Tensor | None],
    batches: Iterator[Batch],
    title: str,
    amp_dtype: torch.dtype | None,
    run: Runner,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each model, which has `numbers` of its own, on one set: `batches` are this rank's."""
    outcomes: dict[str, list[Outcome]] = {model.name: [] for model in models}
    for images, labels in batches:
        for model, own in zip(models, numbers, strict=True):
            truth = labels if own is None else own[labels]
            outcomes[model.name].append(judge(model, images, truth, run.memory, amp_dtype))
        run.progress.step(len(images), title)
    figures = {}
    for name, found in outcomes.items():
        correct, confidence = zip(*run.ranks.gather(found), strict=True)
        figures[name] = figures_of(np.concatenate(correct), np.concatenate(confidence))
    return figures


def figures_of(correct: Bits, confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return the JSON figures of a model on a set, from whether it is right and its largest probability, both (N,)."""
    gaps = calibration_gaps(confidence, correct)
    return {
        'examples': len(correct),
        'error': int((~correct).sum()) / len(correct),
        'ece': round(sum(map(abs, gaps)) / len(correct), 8),
        'ece_gaps': gaps,
        'correct': pack_bits(correct),
    }


def _check_models(models: Sequence[PixelModel], data: CorruptedSet, clean: ImageSet | None) -> None:
    """Raise a ValueError unless the models have unique names and the data's classes, and take its images."""
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'Got models called {names}; pass at least one, each with a name of its own.')
    for model in models:
        model.numbers_of(data.class_names, data.num_classes, 'the corrupted set')
        if clean is not None:
            model.numbers_of(clean.class_names, clean.num_classes, clean.name)
        check_size(model, SUITES[data.suite])
