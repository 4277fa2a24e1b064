#!/usr/bin/env python3
"""Make the runs of a grid, several at a time, each on one thread; the same command goes on where it was stopped.

    python benchmarks/evidence/run_grid.py benchmarks/evidence/starts.yaml --data FOLDER --output FOLDER [--workers 2]

FOLDER of --data has train-*.parquet and test-*.parquet of CIFAR-10 (columns img and label). A grid names a recipe,
flags of train.py that all runs share, and the runs: `flags` of each, and `start`, a table of tables.py that its
network begins with. Each run gets a folder of --output with train.py's files, log.txt, and run.json: commit, flags,
state (running, finished, failed), seconds of training. A run that ended is measured (measure.py) and left alone.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_BEAT = 2.0  # seconds between updates of run.json: what a killed queue loses of the seconds it states


class Queue:
    """The runs of several grids, and the signal that ends them."""

    def __init__(self, data: Path, output: Path) -> None:
        self.data, self.output = data.resolve(), output.resolve()
        self.stop = threading.Event()
        git = ['git', '-C', str(ROOT)]
        if subprocess.check_output([*git, 'status', '--porcelain', '-uno']):
            raise SystemExit(f'run_grid.py: error: {ROOT} has uncommitted changes; run from a clean clone.')
        self.commit = subprocess.run(
            [*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
        ).stdout.strip()

    def run(self, name: str, grid: dict[str, Any], entry: dict[str, Any]) -> None:
        """Train one run to its end unless that has happened, then measure it."""
        folder = self.output / name
        state_file = folder / 'run.json'
        state = json.loads(state_file.read_text()) if state_file.is_file() else {'name': name, 'seconds': 0.0}
        if state.get('state') in ('finished', 'failed') or self.stop.is_set():
            return
        folder.mkdir(parents=True, exist_ok=True)
        words = [*shlex.split(grid.get('flags', '')), *shlex.split(entry.get('flags', ''))]
        start = entry.get('start')
        told = {'commit': self.commit, 'recipe': grid['recipe'], 'flags': words, 'start': start}
        if any(state.get(key, value) != value for key, value in told.items()):
            raise SystemExit(f'run_grid.py: error: {folder} holds another run (commit, recipe, flags or start differ).')
        state |= told | {'state': 'running'}
        if start:
            self._write_table(folder / 'start', start)
            words = [*words, '--p2be-embedding', str(folder / 'start')]
        code = self._train(folder, state, ['-c', str(ROOT / grid['recipe']), *words])
        if self.stop.is_set():
            return
        state['state'] = 'failed' if code else 'finished'
        if not code:
            measure = [sys.executable, str(Path(__file__).with_name('measure.py')), str(folder)]
            measure += ['--data', str(self.data), *shlex.split(grid['measure'])]
            code = self._call(measure, folder / 'log.txt')
            if self.stop.is_set():
                return
            state['state'] = 'finished' if code == 0 else 'failed'
        state_file.write_text(json.dumps(state, indent=1))
        print(f'{name}: {state["state"]} after {state["seconds"] / 60:.1f} minutes', flush=True)

    def _write_table(self, folder: Path, start: dict[str, Any]) -> None:
        if folder.is_dir():
            return
        code = 'import json, sys; from tables import build_table; '
        code += 'build_table(**json.loads(sys.argv[1])).save_pretrained(sys.argv[2])'
        subprocess.run(
            [sys.executable, '-c', code, json.dumps(start), str(folder)],
            check=True,
            env={**os.environ, 'PYTHONPATH': str(Path(__file__).parent)},
        )

    def _train(self, folder: Path, state: dict[str, Any], words: list[str]) -> int:
        command = [sys.executable, str(Path(__file__).with_name('controls.py')), 'train', *words]
        command += ['--dataset', f'hfds/{self.data}', '--input-key', 'img', '--target-key', 'label']
        command += ['--output', str(self.output), '--experiment', folder.name]
        found = [*folder.glob('recovery-*.pth.tar'), *folder.glob('last.pth.tar')]
        if found:
            command += ['--resume', str(max(found, key=lambda file: file.stat().st_mtime))]
        before = state['seconds']

        def beat(seconds: float) -> None:
            state['seconds'] = round(before + seconds, 1)
            (folder / 'run.json').write_text(json.dumps(state, indent=1))

        return self._call(command, folder / 'log.txt', beat)

    def _call(self, command: list[str], log: Path, beat: Any = lambda seconds: None) -> int:
        """Run a command to its end, or pass a stop on to it."""
        start = time.monotonic()
        with (
            log.open('a') as file,
            subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, 'OMP_NUM_THREADS': '1'}
            ) as child,
        ):
            while child.poll() is None:
                if self.stop.wait(_BEAT):
                    child.terminate()  # train.py writes a recovery file
                    child.wait()
                beat(time.monotonic() - start)
            return child.returncode


def main() -> None:
    """Make all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', nargs='+', type=Path)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    os.nice(19)
    queue = Queue(args.data, args.output)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: queue.stop.set())
    with ThreadPoolExecutor(args.workers) as pool:
        jobs = []
        for path in args.grid:
            grid = yaml.safe_load(path.read_text())
            jobs += [pool.submit(queue.run, name, grid, entry) for name, entry in grid['runs'].items()]
        for job in jobs:
            job.result()


if __name__ == '__main__':
    main()
