"""Signals and diverging losses: a checkpoint that can be resumed, the right exit code, nothing good overwritten."""

import argparse
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import run_ranks
from runs import OPEN_FILES, VIEWS, assert_same_state, at_call, checkpoint, command, summary
from torch import Tensor

from timm_p2be.task import P2BETask
from timm_p2be.training import run as train
from timm_p2be.training import stopping
from timm_p2be.training.ending import ending
from timm_p2be.training.epoch import Trainer
from timm_p2be.training.progress import Progress
from timm_p2be.training.stopping import Interrupted, StopSignal

SCRIPT = str(Path(__file__).parents[1] / 'train_scripts' / 'train.py')
pytestmark = OPEN_FILES
Patch = pytest.MonkeyPatch
FLAGS = (*VIEWS, '--epochs', '2', '--sched-on-updates')


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """Under nohup a run keeps SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope='module')
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('straight') / 'run'
    assert train.main(command(data, output, *FLAGS)) == 0
    return output


PLACES = {
    # three updates an epoch: the fifth batch is the second of epoch 1
    'inside an epoch': ('_batch', 5, (1, 2), signal.SIGTERM),
    'at the end of an epoch': ('_batch', 3, (0, 3), signal.SIGINT),
    'in validation': ('validate', 1, (0, 3), signal.SIGUSR1),
    'before the first update': ('_batches', 1, (0, 1), signal.SIGHUP),
}


@pytest.mark.parametrize('place', PLACES)
def test_signal_writes_a_checkpoint_to_go_on_from(data, straight, tmp_path, place, monkeypatch):
    output = tmp_path / 'run'
    name, call, position, number = PLACES[place]
    at_call(monkeypatch, Trainer, name, call, lambda: signal.raise_signal(number))
    assert train.main(command(data, output, *FLAGS)) == 128 + number
    (recovery,) = output.glob('recovery-*.pth.tar')
    saved = checkpoint(recovery)['args'].position
    assert (saved['epoch'], saved['update']) == position
    assert train.main(command(data, output, *FLAGS, '--resume', str(recovery))) == 0
    assert_same_state(straight / 'last.pth.tar', output / 'last.pth.tar')
    assert summary(straight) == summary(output)


def test_signal_between_epochs(data, tmp_path, monkeypatch):
    """Also where the epoch before wrote no checkpoint."""
    at_call(monkeypatch, train.Run, '_seed_epoch', 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert train.main(command(data, tmp_path / 'run', '--epochs', '3', '--val-interval', '3')) == 143
    assert [path.name for path in (tmp_path / 'run').glob('*.pth.tar')] == ['recovery-1-0.pth.tar']


def test_signal_while_batches_are_passed_over(data, tmp_path, monkeypatch):
    output = tmp_path / 'run'
    at_call(monkeypatch, Trainer, '_batch', 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert train.main(command(data, output, *FLAGS)) == 143
    (recovery,) = output.glob('recovery-*.pth.tar')
    at_call(monkeypatch, Progress, 'restart', 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert train.main(command(data, output, *FLAGS, '--resume', str(recovery))) == 143
    assert checkpoint(recovery)['args'].position['update'] == 2


def test_signal_while_the_run_is_built_ends_it(data, tmp_path, capsys, monkeypatch):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, 'build_loaders', interrupt)
    assert train.main(command(data, tmp_path / 'out' / 'run')) == 130
    assert 'interrupted' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_second_signal_interrupts_unless_it_is_an_echo(monkeypatch):
    stop = StopSignal()
    with stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # at once: a launcher's copy
        assert stop()
        assert stop.received == signal.SIGTERM
        monkeypatch.setattr(stopping, '_REPEAT_SECONDS', -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_process_says_that_torchrun_has_ended_where_another_saw_it_first(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'run')
    stop = StopSignal()
    assert not stop()
    monkeypatch.setattr(os, 'getppid', lambda: 1)
    assert ending(Interrupted(), lambda: 'recovery', argparse.Namespace(rank=1), stop) == (
        75,
        'torchrun, which started this process, has ended. Stopped; go on with --resume recovery',
    )


def test_nohup_keeps_a_run_from_hearing_that_its_terminal_closed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
            signal.raise_signal(signal.SIGUSR1)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_loader_workers_leave_signals_to_the_main_process(data, tmp_path):
    """A worker that ended would raise in the main process, wherever that is."""
    run = train.Run(train.parse_args(command(data, tmp_path / 'run', '--workers', '1')), StopSignal())
    for loader in (run.loaders.training, run.loaders.validation):
        batches = iter(loader.loader)
        images = [next(batches)]  # the worker is up
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.2)
        assert all(worker.is_alive() for worker in multiprocessing.active_children())
        assert len([*images, *batches]) == len(loader)


def test_a_worker_that_a_signal_ended_does_not_hide_the_stop(data, tmp_path, monkeypatch):
    def broken(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Terminated')
        yield

    monkeypatch.setattr(Progress, 'timed', broken)
    assert train.main(command(data, tmp_path / 'run')) == 143
    assert (tmp_path / 'run' / 'recovery-0-0.pth.tar').exists()


def test_a_killed_worker_ends_in_a_recovery_file(data, tmp_path, capsys, monkeypatch):
    """As the kernel kills where memory runs out; torch alone would raise inside the update."""

    def kill() -> None:
        (worker, *_) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    output, flags = tmp_path / 'run', (*FLAGS, '--workers', '2')
    at_call(monkeypatch, Trainer, '_batch', 2, kill)
    assert train.main(command(data, output, *flags)) == 75
    said = capsys.readouterr().err
    (recovery,) = output.glob('recovery-0-*.pth.tar')
    assert 'DataLoader worker (pid' in said
    assert f'fewer --workers, or a smaller --batch-size. Stopped; go on with --resume {recovery}' in said
    assert train.main(command(data, output, *flags, '--resume', 'auto')) == 0
    assert train.main(command(data, tmp_path / 'straight', *flags)) == 0
    assert_same_state(tmp_path / 'straight' / 'last.pth.tar', output / 'last.pth.tar')


def stopped(command: list[str], number: signal.Signals) -> tuple[int, str]:
    """Signal a run's whole group, as a terminal does, after two updates; return exit code and what it said then."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith('Train: 0 [   2/3]'):
                break
        os.killpg(process.pid, number)
        said = process.stderr.read()
        return process.wait(timeout=120), said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()  # type: ignore[union-attr]


ENDLESS = (*VIEWS, '--epochs', '1000', '--log-interval', '1')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_signal_to_the_whole_process_group(data, tmp_path, number, code):
    """Loader workers get it too."""
    output = tmp_path / 'run'
    ended, said = stopped([SCRIPT, *command(data, output, *ENDLESS, '--workers', '2')], number)
    assert ended == code, said
    assert f'Stopped by {number.name}; go on with --resume {output}/recovery-' in said
    assert 'Traceback' not in said
    (recovery,) = output.glob('recovery-*.pth.tar')
    assert checkpoint(recovery)['args'].position['count'] > 0


@pytest.mark.slow
def test_torchrun_stops_all_processes_together(data, tmp_path):
    words = command(data, tmp_path / 'run', *ENDLESS, '--workers', '1', '--batch-size', '4')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    _, said = stopped([*launcher, '-m', 'timm_p2be.training', *words], signal.SIGTERM)
    assert 'Stopped by SIGTERM' in said
    assert len(list((tmp_path / 'run').glob('recovery-*.pth.tar'))) == 1


def test_exploding_weights_stop_the_run(data, tmp_path, capsys):
    output = tmp_path / 'run'
    words = command(data, output, *VIEWS, '--recovery-interval', '1', opt=('--opt', 'sgd', '--lr', '1e38'))
    assert train.main(words) == 1
    error = capsys.readouterr().err
    assert 'epoch 0, update' in error
    assert 'no longer finite' in error
    for path in output.glob('*.pth.tar'):
        assert all(value.isfinite().all() for value in checkpoint(path)['state_dict'].values())


@pytest.mark.parametrize('flags', [(), ('--amp', '--amp-dtype', 'bfloat16')], ids=' '.join)
def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, capsys, flags, monkeypatch):
    output = tmp_path / 'run'
    objective, calls = P2BETask.objective, itertools.count(1)

    def poisoned(self: Any, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        result = objective(self, logits, labels)
        # its gradient is finite, and so are the weights after it
        return {**result, 'loss': result['loss'] + float('nan')} if next(calls) == 5 else result

    monkeypatch.setattr(P2BETask, 'objective', poisoned)
    assert train.main(command(data, output, *FLAGS, *flags, '--recovery-interval', '1')) == 1
    # of the update before; the loss was not known yet when the one after could have been written
    assert sorted(path.name for path in output.glob('recovery-1-*.tar')) == ['recovery-1-0.pth.tar']
    error = capsys.readouterr().err
    assert 'The loss is no longer finite at epoch 1, update 1' in error
    assert f'kept: {output}' in error
    assert checkpoint(output / 'last.pth.tar')['epoch'] == 0
    assert train.main(command(data, output, *FLAGS, *flags, '--resume', str(output / 'last.pth.tar'))) == 0


def _train_with_a_nan_of_one(words: list[str]) -> int:
    objective, calls = P2BETask.objective, itertools.count(1)

    def poisoned(task: P2BETask, *batch: Any) -> dict[str, Tensor]:
        result = objective(task, *batch)
        bad = os.environ['RANK'] == '1' and next(calls) == 3
        return {**result, 'loss': result['loss'] + float('nan')} if bad else result

    P2BETask.objective = poisoned  # type: ignore[method-assign]  # of this process
    return train.main(words)


@pytest.mark.slow
def test_processes_stop_together_at_the_nan_of_one(data, tmp_path):
    words = command(data, tmp_path / 'run', '--epochs', '2', '--batch-size', '4', '--recovery-interval', '1')
    assert run_ranks(_train_with_a_nan_of_one, words) == [1, 1]
    assert not (tmp_path / 'run' / 'recovery-0-2.pth.tar').exists()


def test_a_batch_too_large_for_memory(data, tmp_path, capsys, monkeypatch):
    def exhausted() -> None:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    at_call(monkeypatch, Trainer, '_batch', 2, exhausted)
    assert train.main(command(data, tmp_path / 'run')) == 2
    said = capsys.readouterr().err
    assert '--batch-size 8: CUDA out of memory' in said
    assert '--grad-accum-steps' in said


def named(network: Any, end: str) -> Tensor:
    return next(value for name, value in network.state_dict(keep_vars=True).items() if name.endswith(end))


DAMAGED = {
    'state_dict/fc.bias': lambda run: named(run.task.trainable_module, 'fc.bias'),
    'running_var': lambda run: named(run.task.trainable_module, 'running_var'),
    'state_dict_ema/': lambda run: next(run.task.get_trainable_module(ema=True).parameters()),
    'momentum_buffer': lambda run: next(iter(run.optimizer.state.values()))['momentum_buffer'],
}


BROKEN = [*zip(DAMAGED, map(float, ('nan', 'inf', 'nan', 'inf')), strict=True)]


@pytest.mark.parametrize(('what', 'value'), BROKEN)
def test_what_the_last_update_broke_is_not_saved(data, tmp_path, capsys, monkeypatch, what, value):
    """Without validation, whose loss would tell; and the message names no file that is broken itself."""
    output, finish = tmp_path / 'run', train.Run._finish_epoch

    def damage(run: train.Run, epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 1:
            DAMAGED[what](run).data.fill_(value)
            (output / 'last.pth.tar').write_bytes(b'broken')
        finish(run, epoch, metrics)

    monkeypatch.setattr(train.Run, '_finish_epoch', damage)
    assert train.main(command(data, output, *FLAGS, '--val-split', '', '--model-ema')) == 1
    said = capsys.readouterr().err
    assert what in said
    assert 'is no longer finite at epoch 1, update 3' in said
    assert f'kept: {output}/checkpoint-0.pth.tar' in said
    assert {checkpoint(path)['epoch'] for path in output.glob('[cm]*.pth.tar')} == {0}


def test_weights_broken_in_validation_are_not_saved(data, tmp_path, monkeypatch):
    finish = train.Run._finish_epoch

    def damage(run: train.Run, epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 1:
            DAMAGED['state_dict/fc.bias'](run).data.fill_(float('nan'))
        finish(run, epoch, metrics)

    monkeypatch.setattr(train.Run, '_finish_epoch', damage)
    assert train.main(command(data, tmp_path / 'run', *FLAGS)) == 1
    assert checkpoint(tmp_path / 'run' / 'last.pth.tar')['epoch'] == 0


def test_a_lost_process_of_which_gloo_tells_without_its_name(
    data: Path, output: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed() -> None:
        raise RuntimeError('Application timeout caused pair closure')  # a frozen one, in about one case of six

    at_call(monkeypatch, Trainer, '_batch', 2, closed)
    assert train.main(command(data, output, *FLAGS)) == 75
    assert 'process 0 of 1: another process has ended, or has not answered' in capsys.readouterr().err
