"""The output folder of train.py: one run at a time, no run over another, --resume auto, and folders that fail."""

import logging
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import forked, hold
from runs import OPEN_FILES, WHOLE, assert_same_state, at_call, checkpoint, command, rewrite, summary

from timm_p2be.training import run as train
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.epoch import Trainer
from timm_p2be.training.output import OutputFolder

pytestmark = OPEN_FILES


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, with the times of its files."""
    return shutil.copytree(straight, tmp_path / 'run')


def ages(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_run_does_not_overwrite_another(data, straight, copy, capsys):
    before = ages(copy)
    for flags in ((), ('--resume', str(straight / 'last.pth.tar'))):
        assert train.main(command(data, copy, *WHOLE, *flags)) == 2
        said = capsys.readouterr().err
        assert f'{copy} holds the checkpoints of a run' in said
        assert '--resume auto' in said
        assert '--overwrite' in said
    assert train.main(command(data, copy, *WHOLE, '--overwrite', '--resume', str(copy / 'last.pth.tar'))) == 2
    assert '--overwrite would delete' in capsys.readouterr().err
    assert ages(copy) == before


def test_overwrite_starts_anew(data, copy):
    (copy / 'mine.txt').write_text('kept')
    assert train.main(command(data, copy, '--overwrite', '--epochs', '1')) == 0
    names = {f'{name}.pth.tar' for name in ('last', 'model_best', 'checkpoint-0')}
    assert {path.name for path in copy.glob('*.pth.tar')} == names
    assert (copy / 'mine.txt').exists()
    assert len(summary(copy)) == 1
    assert 'overwrite: false' in (copy / 'args.yaml').read_text()  # as a recipe it deletes nothing


def test_the_lock_keeps_others_out_until_its_process_is_gone(data, tmp_path, caplog, capsys):
    output = tmp_path / 'run'
    with forked(lambda told: hold(told, 'held', OutputFolder(output))) as (holder, told):
        assert told.recv() == 'held'
        assert train.main(command(data, output)) == 2
        who = f'(host {os.uname().nodename}, process {holder.pid})'
        assert f'another run writes there {who}' in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == ['run.lock']
    with caplog.at_level(logging.INFO):
        OutputFolder(output).close()
    assert f'run.lock was left by a run that is gone {who}' in caplog.text
    assert not (output / 'run.lock').exists()


def test_a_removed_lock_is_not_taken_for_ones_own(tmp_path):
    first = OutputFolder(tmp_path)
    (tmp_path / 'run.lock').unlink()
    second = OutputFolder(tmp_path)
    with pytest.raises(OSError, match='removed or replaced while the run was at work'):
        first.check()
    first.close()
    second.check()
    second.close()
    assert not list(tmp_path.iterdir())


def test_auto_starts_where_nothing_is_and_goes_on_where_something_is(data, straight, tmp_path, monkeypatch):
    output = tmp_path / 'run'
    words = command(data, output, *WHOLE, '--resume', 'auto')
    at_call(monkeypatch, Trainer, '_batch', 5, lambda: signal.raise_signal(signal.SIGTERM))
    assert train.main(words) == 143
    assert train.main(words) == 0
    assert_same_state(straight / 'last.pth.tar', output / 'last.pth.tar')
    assert summary(straight) == summary(output)
    names = ({path.name for path in folder.iterdir()} for folder in (straight, output))
    assert next(names) == next(names)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def poison(path: Path) -> None:
    state: dict[str, Any] = checkpoint(path)
    state['state_dict']['fc.bias'] = torch.full((2,), float('inf'))
    rewrite(path, state)


@pytest.mark.parametrize(
    ('damage', 'why'),
    [(flip, 'its sha256 is not'), (cut, 'its sha256 is not'), (poison, 'state_dict/fc.bias is not finite')],
)
def test_a_damaged_file_is_passed_over(data, straight, copy, caplog, capsys, damage, why):
    for name in ('last', 'checkpoint-1', 'recovery-1-2'):
        path = copy / f'{name}.pth.tar'
        age = path.stat()
        damage(path)
        os.utime(path, ns=(age.st_atime_ns, age.st_mtime_ns))
    sound = copy / 'recovery-1-1.pth.tar'
    assert train.main(command(data, copy, *WHOLE, '--resume', str(copy / 'last.pth.tar'))) == 2
    said = capsys.readouterr().err
    assert why in said
    assert f'The newest sound one there: --resume {sound}' in said
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train.main(command(data, copy, *WHOLE, '--resume', 'auto')) == 0
    assert caplog.text.count('Passed over') == 3
    assert f'resume: {sound}' in (copy / 'args.yaml').read_text()
    assert_same_state(straight / 'last.pth.tar', copy / 'last.pth.tar')


def test_auto_does_not_start_over_what_it_cannot_read(data, copy, capsys):
    for path in copy.glob('*.pth.tar'):
        path.write_bytes(b'')
    before = ages(copy)
    assert train.main(command(data, copy, *WHOLE, '--resume', 'auto')) == 2
    assert 'none of the 6 checkpoints' in capsys.readouterr().err
    assert ages(copy) == before


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--resume', 'auto'), 'name the folder by --experiment'),
        (('--overwrite',), 'name the folder by --experiment'),
        (('--experiment', 'x', '--resume', 'auto', '--overwrite'), 'leave out one of them'),
        (('--recovery-minutes', '-1'), '--recovery-minutes -1.0'),
        (('--recovery-minutes', 'nan'), '--recovery-minutes nan'),
    ],
    ids=str,
)
def test_flags_that_cannot_be_meant(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(['--data-dir', 'x', *flags])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_full_disk_has_an_exit_code_of_its_own(data, straight, tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands for it."""
    output = tmp_path / 'run'
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # noqa: E731
    at_call(monkeypatch, Trainer, '_batch', 5, full)
    try:
        assert train.main(command(data, output, *WHOLE)) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert f'Cannot write into {output}: [Errno 27] File too large. Stopped; the newest sound checkpoint: ' in said
    assert f'{output}/recovery-1-0.pth.tar' in said
    assert not [path.name for path in output.iterdir() if path.name.startswith('.') or path.name == 'run.lock']
    assert train.main(command(data, output, *WHOLE, '--resume', 'auto')) == 0
    assert_same_state(straight / 'last.pth.tar', output / 'last.pth.tar')
    assert summary(straight) == summary(output)


@pytest.mark.parametrize('interval', ['1', '0'])
def test_a_removed_folder_is_not_made_again(data, tmp_path, capsys, monkeypatch, interval):
    output = tmp_path / 'run'
    at_call(monkeypatch, Trainer, '_batch', 2, lambda: shutil.rmtree(output))
    assert train.main(command(data, output, '--recovery-interval', interval)) == 74
    assert 'was removed or replaced while the run was at work' in capsys.readouterr().err
    assert not output.exists()


def test_recovery_by_the_clock(data, tmp_path):
    for minutes, names in (('1e-9', ['recovery-0-1.pth.tar', 'recovery-0-2.pth.tar']), ('60', [])):
        output = tmp_path / minutes
        assert train.main(command(data, output, '--recovery-minutes', minutes)) == 0
        assert sorted(path.name for path in output.glob('recovery-*.pth.tar')) == names
