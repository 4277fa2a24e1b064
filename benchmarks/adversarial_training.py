"""Measure what adversarial training costs: images/s beside plain training and beside the authors' form, re-created.

    python benchmarks/adversarial_training.py [--threads 1] [--model wrn10_2] [--json FILE]

One step is loss, gradients and the SGD and AdamW updates on a batch in memory: random pixels and labels, which do not
change the work. Seconds are CPU time of this process, so that on one thread other programs disturb little; medians of
alternating rounds. Three tables:

1. plain training (one view), ConTrain and AdvTrain in float32, for RGB and every encoding; the ratio is to plain
   training of the same network;
2. the same in bfloat16 autocast and channels_last, as in the recipes for CPUs;
3. ConTrain of P2BE at batch 4 in the authors' form: logits over all 256 levels of every pixel value and the expected
   code as a sum over an array of B x 3 x 256 x H x W x M numbers (benchmarks/lspga.py re-creates it), code planes built
   and convolved in training (TIMM_P2BE_LOOKUP=plain); 'one product' has a matrix product in place of that sum. At batch
   128 the array would take 25.8 GB.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import timm
import torch
from lspga import batch, dense
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from timm_p2be.lookup.operators import SWITCH
from timm_p2be.robustness.pixel_model import as_pixel_model
from timm_p2be.task import AdvTrainTask, ConTrainTask, P2BETask

STEMS = {'RGB': '', 'one-hot': '_onehot', 'thermometer': '_thermometer', 'P2BE': '_p2be'}
KINDS: dict[str, Callable[..., P2BETask]] = {
    'plain': partial(P2BETask, num_views=1),
    'ConTrain': ConTrainTask,
    'AdvTrain': AdvTrainTask,
}


class Step:
    """One training step of a network, on batches of `size` images."""

    def __init__(self, name: str, kind: str, size: int, low: bool = False) -> None:
        torch.manual_seed(0)
        self.low = low
        self.model = timm.create_model(name, num_classes=10).train()
        if low:
            self.model.to(memory_format=torch.channels_last)
        self.task = KINDS[kind](self.model, smoothness=float(name.endswith('_p2be')), verbose=False)
        self.optimizer = create_optimizer_v2(self.model, 'sgdp2be', lr=1e-3, momentum=0.9, weight_decay=5e-4)
        levels, self.labels = batch(size)
        self.images = levels / 255
        if low:
            self.images = self.images.contiguous(memory_format=torch.channels_last)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16) if self.low else nullcontext():
            loss = self.task(self.images, self.labels)['loss']
        loss.backward()
        self.optimizer.step()

    def in_the_authors_form(self, product: bool) -> 'Step':
        """Return the step with the dense attack, on the network in evaluation mode, and without lookup kernels."""

        def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return dense(as_pixel_model(model), (images * 255).round().byte(), labels, product) / 255

        self.task.attack = attack  # type: ignore[assignment]
        return self


def on_the_plain_path(step: Step) -> None:
    """Make a step that builds and convolves the code planes."""
    os.environ[SWITCH] = 'plain'
    try:
        step()
    finally:
        del os.environ[SWITCH]


def rates(calls: dict[str, Callable[[], None]], size: int, rounds: int) -> dict[str, float]:
    """Return images per second of CPU time, medians of alternating rounds after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - start)
        print(f'round {number} of {rounds}, batch {size}', file=sys.stderr)
    return {name: size / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='wrn10_2', help='an RGB network with encoded twins (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='default: %(default)s')
    parser.add_argument('--batch', type=int, default=128, help='images in the first two tables (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measured: dict[str, dict[str, float]] = {}
    print(f'{args.model}, {args.threads} threads, torch {torch.__version__}, images/s (times plain training takes)')
    for low in (False, True):
        title = 'bfloat16, channels_last' if low else 'float32'
        calls: dict[str, Callable[[], None]] = {
            f'{stem}, {kind}': Step(args.model + suffix, kind, args.batch, low)
            for stem, suffix in STEMS.items()
            for kind in KINDS
        }
        measured[title] = speeds = rates(calls, args.batch, args.rounds)
        print(f'\n| {title}, batch {args.batch} | plain | ConTrain | AdvTrain |\n|---|---|---|---|')
        for stem in STEMS:
            own = [speeds[f'{stem}, {kind}'] for kind in KINDS]
            print(f'| {stem} | ' + ' | '.join(f'{speed:.1f} ({own[0] / speed:.1f})' for speed in own) + ' |')
    name = args.model + STEMS['P2BE']
    calls = {'window (ours)': Step(name, 'ConTrain', 4)}
    for form, product in (('dense', False), ('dense, one product', True)):
        calls[form] = partial(on_the_plain_path, Step(name, 'ConTrain', 4).in_the_authors_form(product))
    measured['ConTrain, float32, batch 4'] = speeds = rates(calls, 4, args.rounds)
    ours = measured['float32']['P2BE, ConTrain']
    print(f'\n| ConTrain of P2BE, float32, batch 4 | images/s | ours at batch {args.batch} / this |\n|---|---|---|')
    for form, speed in speeds.items():
        print(f'| {form} | {speed:.2f} | {ours / speed:.1f} |')
    if args.json:
        content = {'model': args.model, 'threads': args.threads, 'torch': torch.__version__, 'batch': args.batch}
        content |= {'machine': platform.processor() or platform.machine(), 'images_per_second': measured}
        args.json.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
