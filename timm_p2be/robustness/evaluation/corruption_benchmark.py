"""Measures models under common corruptions: every model sees the same images, every figure is kept, runs resume."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_p2be.files import write_json
from timm_p2be.robustness.corruptions import SUITES
from timm_p2be.robustness.corruptions.corrupted_data import (
    Batch,
    CorruptedSet,
    check_severities,
    choose_names,
    load_batches,
    spans_of,
)
from timm_p2be.robustness.evaluation.corruption_record import (
    CLEAN,
    configuration,
    figures_of,
    is_done,
    start_content,
    store_figures,
)
from timm_p2be.robustness.evaluation.predictions import Judge, Outcome, logits
from timm_p2be.robustness.evaluation.processes import Processes, processes
from timm_p2be.robustness.evaluation.progress import Progress
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel


def benchmark_corruptions(
    models: Sequence[PixelModel],
    data: CorruptedSet,
    clean: ImageSet | None = None,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    batch_size: int = 128,
    workers: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    amp_dtype: torch.dtype | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Measure models on corrupted images.

    Results are written after every set (one corruption at one severity), and a run that finds results of the same
    configuration does only what is missing. Started by torchrun, the processes share the images.

    Args:
        models: with unique names.
        data: corrupted images.
        clean: the same images without corruption, for the clean error; None leaves it out.
        corruptions: of the data; None takes all.
        severities: of the data; None takes all.
        batch_size: images at a time; halved for a model that runs out of memory.
        workers: processes that read or corrupt images.
        output: JSON file of the results; None keeps them in memory.
        overwrite: start afresh even if there are results.
        amp_dtype: torch.bfloat16 or torch.float16 for autocast; None computes in float32.
        show: print progress.

    Returns:
        The content of the file, as docs/protocol.md describes; complete on the first process only.

    Raises:
        ValueError: classes that do not match, results of another configuration, a model that gives no finite numbers.
        OSError: the results cannot be written; those of the sets before are intact.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f'Got batch_size={batch_size}, workers={workers}; take at least 1 image and 0 workers.')
    label = data.describe()['label']
    names = data.names if corruptions is None else choose_names(set(data.names), corruptions, False, label)
    levels = data.severities if severities is None else check_severities(severities)
    if not set(levels) <= set(data.severities):
        raise ValueError(f'Got severities {list(levels)}; {label} has {list(data.severities)}.')
    _check_models(models, data)
    config = configuration(models, data, clean, names, levels, amp_dtype)
    with processes() as team:
        content = team.broadcast(start_content(config, output, overwrite) if team.first else {})
        jobs = [(name, severity) for name in names for severity in levels if not is_done(content, name, severity)]
        if clean is not None and not content['clean']:
            jobs.insert(0, (CLEAN, 0))
        spans = {name: team.share(spans_of(len(data), batch_size)) for name in names}
        spans[CLEAN] = team.share(spans_of(len(clean) if clean is not None else 0, batch_size))
        total = sum(len(span) for name, _ in jobs for span in spans[name])
        progress = Progress(total, show=show and team.first)
        judge = Judge(amp_dtype, progress.say)
        try:
            for name, severity in jobs:
                batches = _batches(data, clean, name, severity, spans[name], workers, team, progress)
                results = _measure(models, batches, f'{name} {severity or ""}', judge, team, progress)
                if team.first:
                    store_figures(content, name, severity, results, len(names) * len(levels))
                    if output is not None:
                        write_json(output, content)
        finally:
            progress.close()
    return content


def _batches(
    data: CorruptedSet,
    clean: ImageSet | None,
    name: str,
    severity: int,
    spans: Sequence[range],
    workers: int,
    team: Processes,
    progress: Progress,
) -> Iterator[Batch]:
    """Return this process's batches of one set."""
    if name == CLEAN and clean is not None:
        return load_batches(_Clean(clean), spans, workers)
    if team.first:
        data.prepare(name, workers, progress.beat)
    team.wait()
    data.prepare(name, workers, progress.beat)  # on the other processes: opens what the first has made
    return data.batches(name, severity, spans, workers)


def _measure(
    models: Sequence[PixelModel],
    batches: Iterator[Batch],
    title: str,
    judge: Judge,
    team: Processes,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each model on one set, on the first process; the others get none."""
    outcomes: dict[str, list[Outcome]] = {model.name: [] for model in models}
    for images, labels in batches:
        for model in models:
            outcomes[model.name].append(judge(model, images, labels))
        progress.step(len(images), title)
    gathered = {name: team.gather(parts) for name, parts in outcomes.items()}
    return {
        name: figures_of(np.concatenate([bits for bits, _ in parts]), np.concatenate([sure for _, sure in parts]))
        for name, parts in gathered.items()
        if parts
    }


class _Clean(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Clean images as tensors."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.images[index]
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), label


def _check_models(models: Sequence[PixelModel], data: CorruptedSet) -> None:
    """Raise a ValueError unless the models have unique names and the data's classes, and take its images."""
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'Got models called {names}; pass at least one, each with a name of its own.')
    side = SUITES[data.suite]
    for model in models:
        if data.num_classes not in (None, model.num_classes):
            raise ValueError(
                f'{model.name} has {model.num_classes} classes, the data {data.num_classes}. Choose a model of '
                f'{data.num_classes} classes; for folders with some of the classes only, pass --class-map FILE.'
            )
        try:
            logits(model, torch.zeros(1, 3, side, side, dtype=torch.uint8), None)
        except Exception as error:  # models raise whatever they like
            raise ValueError(
                f'{model.name} does not take images of {side}x{side} pixels, those of the suite {data.suite!r} (it was '
                f'made for {model.input_size}): {error}'
            ) from error
