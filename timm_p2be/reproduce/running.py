"""Makes the runs of a grid, one after another: each trained, measured and kept, or resumed where it was stopped."""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from timm_p2be.extras import require
from timm_p2be.files import read_json, read_yaml, write_json
from timm_p2be.hub.run_folder import read_run
from timm_p2be.reproduce.grid import CORRUPTED, DATASET, Grid, Run
from timm_p2be.reproduce.measuring import measure, suite_of
from timm_p2be.reproduce.page import write_page
from timm_p2be.robustness.corruptions.stored_sets import open_corrupted
from timm_p2be.training.checkpoints import newest_checkpoint
from timm_p2be.training.embedding_flags import pinned
from timm_p2be.training.run import main as train

Outcome = dict[str, Any]
DIVERGED = 1  # exit code of train.py
_GRID, _OUTCOME = 'grid.json', 'outcome.json'
_WHERE = {'resume', 'output', 'experiment', 'config', 'device'}  # where a run is, not what it is
# what train.py settles itself, in args.yaml, unless it is told
_SETTLED = {'pin_mem', 'lr', 'lr_base_scale', 'num_classes', 'model_kwargs', 'p2be_init', 'workers', 'eval_metric'}


class Failed(RuntimeError):
    """A run of train.py ended with an error; the message names its log."""


def carry_out(grid: Grid, output: Path, corrupted: dict[str, Path], prog: str) -> int:
    """Make the runs that no process has made or is making, then the page, and return the exit code of `prog`."""
    require('matplotlib', extra='robustness')  # now, not when all runs are done
    leave_ranks()
    open_folder(grid, output)
    print(f'{len(grid.runs)} runs in {output}; while one trains, its log.txt grows', flush=True)
    for number, run in enumerate(grid.runs, 1):
        place = f'[{number}/{len(grid.runs)}] {run.name}'
        with _claimed(output / run.name) as mine:
            if not mine:
                print(f'{place}: another process is making it', flush=True)
                continue
            try:
                outcome = _make_one(grid, run, output / run.name, corrupted)
            except Failed as error:
                print(f'{prog}: error: {error}', file=sys.stderr)
                return 1
            figures = ', '.join(f'{name} {value:.2f} %' for name, value in outcome['figures'].items())
            print(f'{place}: {figures or outcome["state"]}', flush=True)
    files = [output / run.name / _OUTCOME for run in grid.runs]
    outcomes = [read_json(file) for file in files if file.is_file()]
    if len(outcomes) == len(grid.runs):
        report = write_page(grid, outcomes, output)
        print(f'\n{report.markdown()}\nWritten to {output}: report.html, report.md, results.json')
    else:
        print(f'{len(grid.runs) - len(outcomes)} runs are being made by other processes; the last one writes the page.')
    return 0


def check(grid: Grid, corrupted: Mapping[str, Path] = {}) -> None:
    """Raise ValueError if a run cannot be made or measured as its grid says, before any is begun."""
    used = {'', *grid.axes.get(DATASET, ())} if {*grid.show} & {*CORRUPTED} else set()
    for dataset, folder in corrupted.items():
        if dataset not in used:
            raise ValueError(f'--corrupted: no run has a use for {folder}; see the data sets of the grid.')
        open_corrupted(folder)
    for limit in (grid.corruption_images, grid.attack_images):
        if limit is not None and limit < 1:
            raise ValueError(f'Got {limit} images to measure; take at least 1.')
    for run in grid.runs:
        args = run.arguments.args
        if not args.val_split:
            raise ValueError(f'Run {run.name}: no accuracy would be measured; give it a --val-split.')
        table = args.p2be_embedding
        if table not in (None, '{embedding}') and (now := pinned(table)) != table:
            raise ValueError(f'Run {run.name}: {table} may change between two runs; name its commit, now {now}.')
        if {*grid.show} & {*CORRUPTED, 'lspga'} and suite_of(run) == 'cifar' and 'mce' in grid.show:
            raise ValueError(f'Run {run.name}: mCE is of ImageNet-C; show corrupted for images of 32 pixels.')


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
    if {*grid.show} & {*CORRUPTED}:
        told['corruption_images'] = grid.corruption_images
    if 'lspga' in grid.show:
        told['attack_images'] = grid.attack_images
    file = output / _GRID
    known = read_json(file) if file.is_file() else {}
    if changed := [f'{key}: {known[key]} -> {told[key]}' for key in told if known.get(key, told[key]) != told[key]]:
        raise ValueError(f'{output} holds another grid ({"; ".join(changed)}). Choose another --output.')
    write_json(file, known | told)


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


def _make_one(grid: Grid, run: Run, folder: Path, corrupted: dict[str, Path]) -> Outcome:
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
        trained = read_run(folder)
        outcome['epochs'] = trained.epoch + 1
        outcome['figures'] = {'clean': trained.error} | measure(grid, run, trained, corrupted)
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
        if isinstance(value, dict) and isinstance(known, dict):  # a run may have settled more
            known = {key: known.get(key) for key in value}
        if value != known:
            raise ValueError(
                f'{folder} holds a run with other flags ({name}: {known}, not {value}). Choose another --output.'
            )
