"""Measure where a training step's time goes: the network, what P2BE adds to it, and the data pipeline.

    python benchmarks/training_step.py [--threads N] [--json FILE]

The step is that of recipes/cifar10.yaml: 128 images, each a clean and two AugMix views, CE + 12 JSD + smoothness,
SGD for the network and AdamW for the table, here in bfloat16 autocast and channels_last on the CPU. Three tables:

1. whole steps on batches in memory: RGB, P2BE, and P2BE with the code planes convolved (TIMM_P2BE_LOOKUP=plain, as
   before the lookup kernels), with the ratio to RGB;
2. the parts that P2BE adds, each alone, on the same batch;
3. steps fed by timm's loader with one worker, against the same steps on batches in memory.

Set P2BE_DATA to a folder with cifar10/ to train on its images; otherwise scikit-learn's digits are used.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import Tensor

from timm_p2be.data import AugMix, MultiView, zero_padded_crop
from timm_p2be.data.digits import write_digits
from timm_p2be.encodings import pixel_levels
from timm_p2be.lookup.operators import SWITCH
from timm_p2be.stem import find_embedding
from timm_p2be.task import P2BETask

BATCH = 128
VIEWS = 3
ROUNDS = 5  # of whole steps
PART_ROUNDS = 15
LOADER_ROUNDS = 3
LOADER_STEPS = 8  # timed steps in a round
LOADER_WARM_UP = 5  # steps before them, in which batches fetched ahead run out
Batch = tuple[Tensor, Tensor]


class Step:
    """One training step of a network, with everything it needs.

    Args:
        name: timm name.
    """

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last).train()
        learned = name.endswith('_p2be')
        self.task = P2BETask(self.model, smoothness=float(learned), num_views=VIEWS, verbose=False)
        self.optimizer = create_optimizer_v2(
            self.model, opt='sgdp2be', lr=0.1, momentum=0.9, weight_decay=5e-4, filter_bias_and_bn=False, nesterov=True
        )

    def __call__(self, batch: Batch) -> None:
        images, labels = batch
        self.optimizer.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = self.task(images.contiguous(memory_format=torch.channels_last), labels)['loss']
        loss.backward()
        self.optimizer.step()


def seconds(call: Callable[[], Any]) -> float:
    """Return how long `call` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the times of `calls`, made in turn `rounds` times after a first round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            elapsed = seconds(call)
            if number:
                times[name].append(elapsed)
        print(f'round {number} of {rounds}: {", ".join(calls)}', file=sys.stderr)
    return times


def data_loader(folder: str) -> tuple[Any, str]:
    """Return timm's training loader of triples of views with one worker, and the name of its images."""
    if root := os.environ.get('P2BE_DATA'):
        source = 'CIFAR-10 from P2BE_DATA'
        dataset = create_dataset(
            f'hfds/{root}/cifar10', root=None, split='train', input_key='img', target_key='label', is_training=True
        )
    else:
        source = "scikit-learn's digits"
        dataset = create_dataset('', root=str(write_digits(folder)), split='train', is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, 32, 32),
        batch_size=BATCH,
        is_training=True,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=1,
        persistent_workers=False,
        device=torch.device('cpu'),
    )
    dataset.transform = MultiView(zero_padded_crop(32), AugMix(), VIEWS)
    return loader, source


def endless(loader: Any) -> Iterator[Batch]:
    """Yield batches of `loader`, epoch after epoch."""
    while True:
        yield from loader


def on_the_plain_path(step: Step, batch: Batch) -> None:
    """Make a step that builds and convolves the code planes."""
    os.environ[SWITCH] = 'plain'
    try:
        step(batch)
    finally:
        del os.environ[SWITCH]


def time_parts(step: Step, images: Tensor) -> dict[str, list[float]]:
    """Return the times of what P2BE's step does beyond the RGB step, each part alone."""
    stem, embedding = step.model.conv1, find_embedding(step.model)
    levels = pixel_levels(images)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = stem(levels)
    grad = torch.randn_like(features)
    rgb = timm.create_model('wrn40_2').to(memory_format=torch.channels_last).conv1

    def forward(convolution: Any, pixels: Tensor) -> Tensor:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return convolution(pixels)

    def smoothness() -> None:
        parts = step.task.objective(torch.zeros(VIEWS, 10), torch.zeros(1, dtype=torch.long))
        parts['loss'].backward()

    calls = {
        'levels of the images': lambda: pixel_levels(images),
        'RGB stem, forward': lambda: forward(rgb, images),
        'RGB stem, forward and backward': lambda: forward(rgb, images).backward(grad),
        'P2BE stem (levels given), forward': lambda: forward(stem, levels),
        'P2BE stem (levels given), forward and backward': lambda: forward(stem, levels).backward(grad),
        'bits of the table': lambda: embedding.codes(),
        'smoothness loss, forward and backward': smoothness,
        'both optimizers': step.optimizer.step,
    }
    return interleave(calls, PART_ROUNDS)


def time_loader(steps: dict[str, Step], loader: Any, batch: Batch) -> dict[str, list[float]]:
    """Return times per step, fed by the loader and from memory, in alternating runs."""
    times: dict[str, list[float]] = {}
    for number in range(LOADER_ROUNDS):
        for name, step in steps.items():
            batches = endless(loader)
            for _ in range(LOADER_WARM_UP):
                step(next(batches))
            fed = seconds(lambda step=step, batches=batches: [step(next(batches)) for _ in range(LOADER_STEPS)])
            batches.close()  # ends the worker
            memory = seconds(lambda step=step: [step(batch) for _ in range(LOADER_STEPS)])
            times.setdefault(f'{name}, loader', []).append(fed / LOADER_STEPS)
            times.setdefault(f'{name}, memory', []).append(memory / LOADER_STEPS)
        print(f'loader round {number + 1} of {LOADER_ROUNDS}', file=sys.stderr)
    return times


def milliseconds(times: list[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(times) * 1e3


def print_tables(whole: dict[str, list[float]], parts: dict[str, list[float]], fed: dict[str, list[float]]) -> None:
    """Print the three tables as Markdown."""
    rgb = milliseconds(whole['RGB'])
    print('\n| whole step, batch in memory | ms | ratio to RGB |\n|---|---|---|')
    for name, times in whole.items():
        print(f'| {name} | {milliseconds(times):.0f} | {milliseconds(times) / rgb:.3f} |')
    print('\n| part, alone | ms | % of the RGB step |\n|---|---|---|')
    for name, times in parts.items():
        print(f'| {name} | {milliseconds(times):.2f} | {100 * milliseconds(times) / rgb:.2f} |')
    print('\n| step | ms, memory | ms, loader with one worker | ratio |\n|---|---|---|---|')
    for name in ('RGB', 'P2BE'):
        memory, loader = (milliseconds(fed[f'{name}, {kind}']) for kind in ('memory', 'loader'))
        ratio = statistics.median(a / b for a, b in zip(fed[f'{name}, loader'], fed[f'{name}, memory'], strict=True))
        print(f'| {name} | {memory:.0f} | {loader:.0f} | {ratio:.3f} |')


def main() -> None:
    """Measure, print the tables and write the timings as JSON."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument('--json', type=Path, metavar='FILE', default=Path('benchmarks/results/training_step.json'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        loader, source = data_loader(folder)
        batch = next(iter(loader))
        batch = batch[0], batch[1]
        steps = {'RGB': Step('wrn40_2'), 'P2BE': Step('wrn40_2_p2be')}
        calls: dict[str, Callable[[], Any]] = {name: lambda step=step: step(batch) for name, step in steps.items()}
        calls['P2BE, plain path'] = lambda: on_the_plain_path(steps['P2BE'], batch)
        whole = interleave(calls, ROUNDS)
        parts = time_parts(steps['P2BE'], batch[0])
        fed = time_loader(steps, loader, batch)
    versions = {'python': platform.python_version()}
    versions |= {module.__name__: str(module.__version__) for module in (torch, timm, llvmlite)}
    print(f'wrn40_2, {BATCH} x {VIEWS} images of 32x32 ({source}), bfloat16, {args.threads} threads, medians. ', end='')
    print(', '.join(f'{name} {version}' for name, version in versions.items()))
    print_tables(whole, parts, fed)
    report = {'schema_version': 1, 'versions': versions, 'threads': args.threads, 'images': source}
    report['seconds'] = {'whole': whole, 'parts': parts, 'loader': fed}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
