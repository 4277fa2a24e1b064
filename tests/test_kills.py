"""Runs that are killed again and again, and started again by the same command, end as one that nobody disturbed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import OPEN_FILES, VIEWS, assert_same_state, command, summary, write_images

pytestmark = [*OPEN_FILES, pytest.mark.slow]
FLAGS = (*VIEWS, '--epochs', '6', '--sched-on-updates', '--resume', 'auto', '--recovery-interval', '1')
FLAGS += ('--model-ema', '--model-ema-decay', '0.5', '--grad-accum-steps', '2', '--log-interval', '1')
ALONE = ('-m', 'timm_p2be.training')
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('images'), training=96)


def begin(output: Path, *words: str) -> 'subprocess.Popen[str]':
    """Start a process group, whose log lies beside its folder."""
    with output.with_suffix('.log').open('a') as log:
        return subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'},
            stderr=log,
            start_new_session=True,
        )


def updates(output: Path) -> int:
    """Count the updates that a run has told of, in all its lives."""
    return output.with_suffix('.log').read_text().count('Train: ')


def end(process: 'subprocess.Popen[str]', output: Path) -> None:
    """Wait until a process ends well, or kill it."""
    try:
        assert process.wait(timeout=400) == 0, output.with_suffix('.log').read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def assert_undisturbed(straight: Path, output: Path) -> None:
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        assert_same_state(straight / name, output / name)
    assert {path.name for path in straight.iterdir()} == {path.name for path in output.iterdir()}


def test_sigkill_at_random_moments(images: Path, tmp_path: Path) -> None:
    straight, output, draw = tmp_path / 'straight', tmp_path / 'run', random.Random(10)
    words = (*FLAGS, '--workers', '2', '--batch-size', '4')
    end(begin(straight, *ALONE, *command(images, straight, *words)), straight)
    killed = 0
    process = begin(output, *ALONE, *command(images, output, *words))
    while killed < 10:
        wanted = updates(output) + draw.randint(1, 5)  # of 72 in all
        while process.poll() is None and updates(output) < wanted:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        process = begin(output, *ALONE, *command(images, output, *words))
    end(process, output)
    assert killed >= 3
    assert_undisturbed(straight, output)
    assert summary(straight) == summary(output)


def test_torchrun_starts_a_run_again_whose_first_rank_was_killed(images: Path, tmp_path: Path) -> None:
    """With a store of its own: in one that torchrun shares, gloo of torch 2.14 may find addresses of the dead."""
    straight, output = tmp_path / 'straight', tmp_path / 'run'
    words = (*FLAGS, '--workers', '1', '--batch-size', '2')
    end(begin(straight, *TORCHRUN, *ALONE, *command(images, straight, *words)), straight)
    process = begin(output, *TORCHRUN, '--max-restarts', '2', *ALONE, *command(images, output, *words))
    while process.poll() is None and updates(output) < 5:
        time.sleep(0.05)
    os.kill(ranks(process.pid)[0], signal.SIGKILL)
    end(process, output)
    assert 'from epoch 0, update 0' not in output.with_suffix('.log').read_text().rpartition('trained parameters')[2]
    assert_undisturbed(straight, output)


@pytest.fixture
def pair(images: Path, tmp_path: Path) -> Iterator[tuple['subprocess.Popen[str]', list[int], Path]]:
    """Two processes that have trained, in sessions of their own: the launcher, their ids, their log."""
    output, flags = tmp_path / 'run', ('--epochs', '1000', '--workers', '1', '--batch-size', '2', '--log-interval', '1')
    process = begin(output, *TORCHRUN, *ALONE, *command(images, output, *flags, '--dist-timeout', '20'))
    while process.poll() is None and updates(output) < 3:
        time.sleep(0.05)
    pids = ranks(process.pid)
    yield process, pids, output.with_suffix('.log')
    process.kill()
    process.wait()
    for pid in pids:
        if Path(f'/proc/{pid}').exists():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize('number', [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_ends_that_waits_for_a_frozen_or_lost_one(pair: Any, number: signal.Signals) -> None:
    launcher, (waiting, lost), log = pair
    if number == signal.SIGKILL:  # torchrun would end the other
        launcher.send_signal(signal.SIGSTOP)
    os.kill(lost, number)
    wait_for_end(waiting, log)
    assert 'process 0 of 2: another process has ended, or has not answered for the 20 seconds' in log.read_text()


def test_processes_end_after_their_launcher(pair: Any) -> None:
    launcher, pids, log = pair
    launcher.kill()
    for pid in pids:
        wait_for_end(pid, log)
    assert log.read_text().count('torchrun, which started this process, has ended. Stopped; go on with --resume') == 2
    assert len(list(log.with_suffix('').glob('recovery-*.pth.tar'))) == 1


def wait_for_end(pid: int, log: Path) -> None:
    """Wait until a process has ended, if only its parent does not know yet."""
    end = time.monotonic() + 300
    while (status := Path(f'/proc/{pid}/stat')).exists() and ') Z ' not in status.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def ranks(launcher: int) -> list[int]:
    """Return the processes that torchrun has started, in the order of their ranks."""
    children = Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
    environments = {int(pid): Path(f'/proc/{pid}/environ').read_text() for pid in children}
    found = {pid: re.search(r'\0LOCAL_RANK=(\d+)', text) for pid, text in environments.items()}
    return sorted((pid for pid, rank in found.items() if rank), key=lambda pid: int(found[pid][1]))  # type: ignore[index]
