"""Makes the runs of a grid, one after another: each trained, measured and kept, or resumed where it was stopped."""

import csv
import fcntl
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from timm_p2be.extras import require
from timm_p2be.files import read_json, read_yaml, write_json
from timm_p2be.reproduce.grid import CORRUPTED, DATASET, Grid, Run
from timm_p2be.reproduce.measuring import measure, suite_of
from timm_p2be.reproduce.page import write_page
from timm_p2be.robustness.corruptions.stored_sets import open_corrupted
from timm_p2be.training.checkpoints import newest_checkpoint
from timm_p2be.training.run import main as train

Outcome = dict[str, Any]
DIVERGED = 1  # exit code of train.py
_GRID, _OUTCOME = 'grid.json', 'outcome.json'
_WHERE = {'resume', 'output', 'experiment', 'config', 'device'}  # where a run is, not what it is
# what train.py settles itself, in args.yaml, unless it is told
_SETTLED = {'pin_mem', 'lr', 'lr_base_scale', 'num_classes', 'model_kwargs', 'p2be_init', 'workers', 'eval_metric'}


class Failed(RuntimeError):
    """A run of train.py ended with an error; the message names its log."""


def carry_out(grid: Grid, output: Path, corrupted: dict[str, Path], prog: str, only: Collection[str] = ()) -> int:
    """Make a grid's runs, write its page when all are there, and return the exit code of the command `prog`."""
    require('matplotlib', extra='robustness')  # now, not when all runs are done
    check(grid)
    _check_stored(grid, corrupted)
    leave_ranks()
    open_folder(grid, output)
    runs = [run for run in grid.runs if not only or run.name in only]
    print(f'{len(runs)} runs in {output}; while one trains, its log.txt grows', flush=True)
    try:
        outcomes = make(grid, runs, output, corrupted)
    except Failed as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    if len(outcomes) == len(grid.runs):
        report = write_page(grid, outcomes, output)
        print(f'\n{report.markdown()}\nWritten to {output}: report.html, report.md, results.json')
    elif not only:
        print(f'{len(grid.runs) - len(outcomes)} runs are being made by other processes; the last one writes the page.')
    return 0


def check(grid: Grid) -> None:
    """Raise ValueError if a run cannot be made or measured as its grid says, before any is begun."""
    for limit in (grid.corruption_images, grid.attack_images):
        if limit is not None and limit < 1:
            raise ValueError(f'Got {limit} images to measure; take at least 1.')
    for run in grid.runs:
        if not run.arguments.args.val_split:
            raise ValueError(f'Run {run.name}: no accuracy would be measured; give it a --val-split.')
        if {*grid.show} & {*CORRUPTED, 'lspga'} and suite_of(run) == 'cifar' and 'mce' in grid.show:
            raise ValueError(f'Run {run.name}: mCE is of ImageNet-C; show corrupted for images of 32 pixels.')


def _check_stored(grid: Grid, corrupted: dict[str, Path]) -> None:
    """Raise ValueError if stored images are not there, or nothing would be measured on them."""
    unused = corrupted.keys() - ({'', *grid.axes.get(DATASET, ())} if {*grid.show} & {*CORRUPTED} else set())
    if unused:
        raise ValueError(f'--corrupted: no run has a use for {corrupted[min(unused)]}; see the data sets of the grid.')
    for folder in corrupted.values():
        open_corrupted(folder)


def leave_ranks() -> None:
    """Make this process one of its own, on the GPU of its rank, where torchrun or SLURM started several.

    Runs are shared by their folders: each is made by one process.
    """
    rank = int(os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0')))
    for name in ('WORLD_SIZE', 'SLURM_NTASKS'):
        os.environ.pop(name, None)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())


def open_folder(grid: Grid, output: Path) -> None:
    """Note the grid in its folder, or raise ValueError if that has runs of another one."""
    told: dict[str, Any] = {'title': grid.title, 'scale': grid.scale}
    told |= {'corruption_images': grid.corruption_images} if {*grid.show} & {*CORRUPTED} else {}
    told |= {'attack_images': grid.attack_images} if 'lspga' in grid.show else {}
    file = output / _GRID
    known = read_json(file) if file.is_file() else {}
    if changed := [f'{key}: {known[key]} -> {told[key]}' for key in told if known.get(key, told[key]) != told[key]]:
        raise ValueError(f'{output} holds another grid ({"; ".join(changed)}). Choose another --output.')
    write_json(file, known | told)


def make(grid: Grid, runs: Sequence[Run], output: Path, corrupted: dict[str, Path]) -> list[Outcome]:
    """Make the runs that are not there yet and that no other process is making, and return all of the grid's that are.

    Raises:
        Failed: train.py ended with an error.
        KeyboardInterrupt: a signal stopped it; the same call goes on.
    """
    for number, run in enumerate(runs, 1):
        place = f'[{number}/{len(runs)}] {run.name}'
        with _claimed(output / run.name) as mine:
            if not mine:
                print(f'{place}: another process is making it', flush=True)
                continue
            outcome = _make_one(grid, run, output, corrupted)
            figures = ', '.join(f'{name} {value:.2f} %' for name, value in outcome['figures'].items())
            print(f'{place}: {figures or outcome["state"]}', flush=True)
    files = [output / run.name / _OUTCOME for run in grid.runs]
    return [read_json(file) for file in files if file.is_file()]


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Yield whether this process has the run to itself; the claim ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'claim').open('w') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not passed on to loader processes
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def _make_one(grid: Grid, run: Run, output: Path, corrupted: dict[str, Path]) -> Outcome:
    folder = output / run.name
    _check_told(run, folder)
    if (folder / _OUTCOME).is_file():
        known = read_json(folder / _OUTCOME)
        if known['state'] == 'diverged' or {*grid.show} <= known['figures'].keys():
            return known
    start = time.time()
    code = _train(run, folder)
    if code > 128:  # a signal, after it has saved where it is
        raise KeyboardInterrupt
    if code not in (0, DIVERGED):
        raise Failed(f'{run.name}: train.py ended with {code} for the reason above; see {folder / "log.txt"}.')
    outcome: Outcome = {**run.cell, 'state': 'diverged' if code else 'finished', 'figures': {}, 'flags': run.words}
    if not code:
        last = list(csv.DictReader((folder / 'summary.csv').read_text(encoding='utf-8').splitlines()))[-1]
        figures = {'clean': 100 - float(last['eval_top1'])}
        outcome |= {'epochs': int(last['epoch']) + 1, 'figures': figures | measure(grid, run, folder, corrupted)}
    outcome['seconds'] = round(time.time() - start)  # of this call: a resumed run took longer
    write_json(folder / _OUTCOME, outcome)
    return outcome


def _train(run: Run, folder: Path) -> int:
    """Train to the end, from the newest checkpoint if there is one, and return train.py's exit code."""
    where = ['--output', str(folder.parent), '--experiment', folder.name]
    if newest := newest_checkpoint(folder):
        where += ['--resume', str(newest)]
    torch.compiler.reset()  # a process compiles a function for a few networks only
    log = logging.FileHandler(folder / 'log.txt', encoding='utf-8')
    logging.root.addHandler(log)
    logging.root.setLevel(logging.INFO)
    try:
        return train([*run.words, *where])
    finally:
        logging.root.removeHandler(log)
        log.close()


def _check_told(run: Run, folder: Path) -> None:
    """Raise ValueError if the folder has a run of train.py that was told something else than this one."""
    file = folder / 'args.yaml'
    if not file.is_file():
        return
    told = read_yaml(file)
    for name, value in vars(run.arguments.args).items():
        if name in _WHERE or (name in _SETTLED and name not in run.arguments.explicit):
            continue
        known = told.get(name)
        same = value.items() <= known.items() if isinstance(value, dict) and isinstance(known, dict) else value == known
        if not same:
            raise ValueError(
                f'{folder} holds a run with other flags ({name}: {known}, not {value}). Choose another --output.'
            )
