"""What the runs of a grid will cost on this machine, from seconds of measurement on synthetic batches."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from timm_p2be.reproduce.grid import CORRUPTED, Grid, Run
from timm_p2be.robustness.corruptions import CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.evaluation.attack_suite import measure_speed
from timm_p2be.robustness.evaluation.report import Table
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.training import building
from timm_p2be.training.arguments import flag_groups

SECONDS = 30.0  # of measurement in all
_FEW = 2  # images of the first batch; it doubles while time is left
_SAME_SPEED = {'--seed', '--epochs', '--train-num-samples', '--val-num-samples'}


class Speed(NamedTuple):
    """Seconds an image: of an update, of a pass forward, and of one with gradient."""

    update: float
    forward: float
    gradient: float


def plan(grid: Grid) -> Table:
    """Return the runs of a grid that differ in more than the seed, with images and expected hours.

    Synthetic batches leave out reading, AugMix and corrupting, which workers do beside the device or ahead of it.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in grid.runs:
        groups.setdefault(_words_but(run, {'--seed'}), []).append(run)
    kinds = {_words_but(run, _SAME_SPEED): run for run, *_ in groups.values()}
    speeds = {kind: measure(run, SECONDS / len(kinds)) for kind, run in kinds.items()}
    rows, all_images, all_hours = [], 0, 0.0
    for run, *more in groups.values():
        speed, count = speeds[_words_but(run, _SAME_SPEED)], 1 + len(more)
        images, hours = _images(grid, run), _hours(grid, run, speed)
        cell = ', '.join(value for axis, value in run.cell.items() if axis != 'seed')
        times = [f'{1 / speed.update:.1f}', _shown(hours), _shown(count * hours)]
        rows.append([cell, str(count), f'{images:,}', *times])
        all_images, all_hours = all_images + count * images, all_hours + count * hours
    rows.append(['all', str(len(grid.runs)), f'{all_images:,}', '-', '-', _shown(all_hours)])
    return Table(['cell', 'runs', 'training images a run', 'images/s', 'hours a run', 'hours'], rows)


def _shown(hours: float) -> str:
    return f'{hours:.1f}' if hours >= 10 else f'{hours:.3f}'


def _words_but(run: Run, flags: set[str]) -> tuple[str, ...]:
    return tuple(word for flag, group in flag_groups(run.words) if flag not in flags for word in group)


def _images(grid: Grid, run: Run) -> int:
    args = run.arguments.args
    return args.epochs * (args.train_num_samples or grid.images['train'])


def _hours(grid: Grid, run: Run, speed: Speed) -> float:
    """Return the hours of training, validation and measurement of one run."""
    args, test = run.arguments.args, grid.images['test']
    validations = math.ceil(args.epochs / args.val_interval) * (args.val_num_samples or test)
    seconds = _images(grid, run) * speed.update + validations * speed.forward
    if {*grid.show} & {*CORRUPTED}:
        seconds += len(CORRUPTIONS) * len(SEVERITIES) * (grid.corruption_images or test) * speed.forward
    if 'lspga' in grid.show:
        seconds += (grid.attack_images or test) * (2 * speed.forward + 7 * speed.gradient)
    return seconds / 3600


def measure(run: Run, seconds: float) -> Speed:
    """Return how fast a run trains and is measured, after about so many seconds; at least one batch of each."""
    end = time.perf_counter() + seconds
    arguments = run.arguments
    args = arguments.args
    args.p2be_embedding, args.p2be_sched = None, 'constant'  # any table, at any rate, is as fast
    device = building.build_device(args, arguments.explicit)
    model = building.build_model(args, device)
    task = building.build_task(args, model, device, {'mean': args.mean, 'std': args.std})
    optimizer = building.build_optimizer(args, model)
    autocast, _ = building.build_precision(args, device)
    side, generator = args.img_size or 224, torch.Generator().manual_seed(0)

    def step(count: int) -> float:
        """Return the seconds an image of one update."""
        images = torch.rand((count * max(args.aug_splits, 1), 3, side, side), generator=generator).to(device)
        labels = torch.randint(0, args.num_classes, (count,), generator=generator).to(device)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        with autocast():
            loss = task(images, labels)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    task.train()
    step(_FEW)  # compiles kernels
    count, update = _FEW, step(_FEW)
    while count < args.batch_size and time.perf_counter() + 6 * count * update < end:
        count = min(2 * count, args.batch_size)
        update = step(count)
    levels = torch.randint(0, 256, (min(count, 32), 3, side, side), generator=generator).to(torch.uint8)
    forward, gradient = measure_speed(PixelModel(model, args.mean, args.std), levels, repeat=1)
    return Speed(update, forward, gradient)


def commands(grid: Grid, output: Path) -> list[list[str]]:
    """Return the command of each training, whose folder the grid will find."""
    return [['timm-p2be', 'train', *run.words, '--output', str(output), '--experiment', run.name] for run in grid.runs]
