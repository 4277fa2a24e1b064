"""--resume: a run in two parts equals a run in one, bit for bit; unfit files are refused before anything is written."""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    OPEN_FILES,
    TINY,
    VIEWS,
    WHOLE,
    assert_equal,
    assert_same_state,
    checkpoint,
    command,
    rewrite,
    summary,
    write_images,
)

from timm_p2be.training import run as train
from timm_p2be.training.checkpoints import _EPOCH_SETTINGS, Position, fit_position

pytestmark = OPEN_FILES
TWO_EPOCHS = (*VIEWS, '--epochs', '2')


def in_two_parts(data: Path, output: Path, *flags: str) -> None:
    """Train the first epoch of two, as if the run had been killed then, and the second one from last.pth.tar."""
    with pytest.MonkeyPatch.context() as patch:
        finish = train.Run._finish_epoch

        def die(run: train.Run, epoch: int, metrics: dict[str, float]) -> None:
            finish(run, epoch, metrics)
            raise SystemExit(9)

        patch.setattr(train.Run, '_finish_epoch', die)
        with pytest.raises(SystemExit):
            train.main(command(data, output, *flags))
    assert train.main(command(data, output, *flags, '--resume', str(output / 'last.pth.tar'))) == 0


@pytest.mark.parametrize(
    'flags',
    [
        (
            '--workers 2 --sched none --p2be-sched constant --model-ema --model-ema-decay 0.5 '
            '--drop 0.5 --reprob 0.5 --remode const'
        ),
        '--opt adamwp2be --p2be-sched follow --warmup-epochs 1 --grad-accum-steps 2 --sched step --decay-epochs 1',
    ],
)
def test_after_an_epoch(data, tmp_path, flags):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert train.main(command(data, whole, *TWO_EPOCHS, *flags.split())) == 0
    in_two_parts(data, parts, *TWO_EPOCHS, *flags.split())
    assert_same_state(whole / 'last.pth.tar', parts / 'last.pth.tar')
    assert summary(whole) == summary(parts)
    ranked, again = (checkpoint(folder / 'last.pth.tar')['saver'] for folder in (whole, parts))
    assert_equal(ranked, again)
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}


@pytest.mark.parametrize(('name', 'update'), [('recovery-1-1', 2), ('recovery-1-2', 3)])
def test_inside_an_epoch(data, straight, tmp_path, name, update):
    """After two of its three updates, and after the last, where only validation is left; the file says which."""
    copy, output = copied(straight, tmp_path, f'{name}.pth.tar'), tmp_path / 'run'
    assert checkpoint(Path(copy))['args'].position['update'] == update
    words = command(data, output, *TWO_EPOCHS, '--sched-on-updates', '--resume', copy)
    assert train.main(words) == 0
    assert_same_state(straight / 'last.pth.tar', output / 'last.pth.tar')
    assert summary(straight)[1:] == summary(output)


def test_inside_an_epoch_of_accumulated_batches(data, tmp_path):
    """After the first of two updates, which took two of the three batches."""
    flags, whole = ('--grad-accum-steps', '2', '--recovery-interval', '1'), tmp_path / 'whole'
    assert train.main(command(data, whole, *flags)) == 0
    copy = copied(whole, tmp_path, 'recovery-0-0.pth.tar')
    assert train.main(command(data, tmp_path / 'run', *flags, '--resume', copy)) == 0
    assert_same_state(whole / 'last.pth.tar', tmp_path / 'run' / 'last.pth.tar')


def test_into_the_same_folder_history_goes_on(data, straight, tmp_path):
    """Back to the first epoch: rows after it are written anew."""
    output = shutil.copytree(straight, tmp_path / 'run')
    assert train.main(command(data, output, *WHOLE, '--resume', str(output / 'checkpoint-0.pth.tar'))) == 0
    assert summary(output) == summary(straight)
    ranked, again = (checkpoint(folder / 'last.pth.tar')['saver'] for folder in (straight, output))
    assert_equal(ranked, again)
    assert (output / 'summary.csv').read_text().count('epoch') == 1


def test_no_resume_opt_starts_the_optimizer_afresh(data, straight, tmp_path):
    path = str(straight / 'checkpoint-0.pth.tar')
    flags = ['--epochs', '2', '--resume', path, '--lr', '0.01']
    assert train.main(command(data, tmp_path / 'run', *flags)) == 2
    assert train.main(command(data, tmp_path / 'run', *flags, '--no-resume-opt')) == 0
    group = checkpoint(tmp_path / 'run' / 'last.pth.tar')['optimizer']['param_groups'][0]
    assert group['initial_lr'] == 0.01


def test_a_finished_run_has_nothing_to_do(data, straight, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        words = command(data, tmp_path / 'run', *TWO_EPOCHS, '--resume', str(straight / 'last.pth.tar'))
        assert train.main(words) == 0
    assert any('Nothing to do: --epochs 2 are done already' in message for message in caplog.messages)


def test_ema_from_a_checkpoint_without_one(data, straight, tmp_path):
    path = str(straight / 'last.pth.tar')
    words = command(data, tmp_path / 'run', *VIEWS, '--epochs', '3', '--model-ema', '--resume', path)
    assert train.main(words) == 0
    average = checkpoint(tmp_path / 'run' / 'last.pth.tar')['state_dict_ema']
    start = checkpoint(Path(path))['state_dict']
    torch.testing.assert_close(average['fc.weight'], start['fc.weight'], rtol=0, atol=1e-2)


def copied(straight: Path, folder: Path, name: str) -> str:
    """Return a copy of a checkpoint in a folder of its own."""
    path = folder / name
    path.write_bytes((straight / name).read_bytes())
    return str(path)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--batch-size', '4'), '--batch-size 4, was 8'),
        (('--grad-accum-steps', '2'), '--grad-accum-steps 2, was 1'),
        (('--seed', '7'), '--seed 7, was 42'),
        (('--workers', '1'), '--workers 1, was 0'),
        (('--p2be-augmix', '1'), '--p2be-augmix 1.0, was 3.0'),
        (('--aug-splits', '2'), '--aug-splits 2, was 3'),
        (('--train-split', 'validation', '--batch-size', '2'), "--train-split validation, was 'train'"),
    ],
)
def test_inside_an_epoch_nothing_changes_which_images_come(data, straight, tmp_path, capsys, flags, words):
    inside = copied(straight, tmp_path, 'recovery-1-1.pth.tar')
    assert train.main(command(data, tmp_path / 'run', *TWO_EPOCHS, *flags, '--resume', inside)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert 'saved inside epoch 1, after update 2 of 3' in said
    assert 'from the end of an epoch' in said
    assert not (tmp_path / 'run').exists()


def test_other_data_is_told_by_the_number_of_updates(straight, tmp_path, capsys):
    more = write_images(tmp_path / 'images', training=32)
    inside = copied(straight, tmp_path, 'recovery-1-1.pth.tar')
    assert train.main(command(more, tmp_path / 'run', *TWO_EPOCHS, '--resume', inside)) == 2
    assert '4 updates an epoch, was 3' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['checkpoint-0', 'recovery-1-2'])
def test_between_epochs_settings_may_change(data, straight, tmp_path, caplog, name):
    """Also in validation, when all updates of an epoch are done: none is made a second time."""
    path = copied(straight, tmp_path, f'{name}.pth.tar')
    flags = ('--batch-size', '4', '--seed', '7', '--resume', path)
    with caplog.at_level(logging.INFO):
        assert train.main(command(data, tmp_path / 'run', *TWO_EPOCHS, *flags)) == 0
    assert '--seed 7, was 42; --batch-size 4, was 8' in caplog.text
    if name == 'recovery-1-2':
        weights = checkpoint(tmp_path / 'run' / 'last.pth.tar')['state_dict']
        assert_equal(weights, checkpoint(straight / 'last.pth.tar')['state_dict'])


SHARED = {'seed': 42, 'world_size': 4, 'batch_size': 8, 'grad_accum_steps': 1, 'workers': 0}


@pytest.mark.parametrize(
    ('now', 'update'),
    [
        ({'world_size': 2, 'batch_size': 16}, 6),
        ({'world_size': 2, 'grad_accum_steps': 2}, 6),
        ({'world_size': 2}, 12),
        ({'world_size': 8}, 3),
        ({'world_size': 8, 'batch_size': 16}, None),  # 192 images are no whole number of updates
        ({'world_size': 1, 'batch_size': 32}, None),  # shuffled by another sampler
        ({'world_size': 2, 'batch_size': 16, 'seed': 1}, None),
        ({'world_size': 2, 'batch_size': 16, 'dataset': 'wds/x'}, None),
    ],
    ids=str,
)
def test_another_number_of_processes_goes_on_where_the_images_fit(now, update):
    args = argparse.Namespace(**{**dict.fromkeys(_EPOCH_SETTINGS), **SHARED, 'dataset': '', 'resume': 'x', 'rank': 0})
    saved = {**vars(args)}
    vars(args).update(now)
    position = Position(3, 6, {'loss': 12.0}, 48, 20)
    if update is None:
        with pytest.raises(ValueError, match=f'processes {now["world_size"]}, was 4'):
            fit_position(position, saved, args, 20)
        return
    fit = fit_position(position, saved, args, 20)
    assert (fit.epoch, fit.update) == (3, update)
    assert fit.count * args.world_size == 6 * 4 * 8
    assert fit.sums['loss'] / fit.count == pytest.approx(12.0 / 48)


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({'epoch': -3}, ''),
    ({'epoch': 'last'}, ''),
    ({'optimizer': [1]}, ''),
    ({'optimizer': {'state': {}, 'param_groups': [{'params': []}]}}, 'does not fit --opt'),
    ({'state_dict': {'a': torch.zeros(3)}}, 'does not fit --model-kwargs --num-classes'),
    ({'state_dict_ema': {'a': torch.zeros(())}}, ''),
    ({'arch': torch.zeros(2)}, ''),
    ({'args': argparse.Namespace(model_kwargs=[1])}, ''),
    ({'args': argparse.Namespace(opt=torch.zeros(3))}, ''),
    ({'args': argparse.Namespace(position={'epoch': -1})}, 'does not fit'),
    ({'args': argparse.Namespace(position=3)}, 'does not fit'),
    ({'optimizer': None, 'arch': None}, "'optimizer' 'arch' --initial-checkpoint"),
]


def test_what_a_checkpoint_says_is_checked_before_it_is_used(data, straight, output, tmp_path, capsys):
    """The reader of all checkpoints has tests of its own: test_checkpoints.py."""
    sound, path = checkpoint(straight / 'last.pth.tar'), tmp_path / 'last.pth.tar'
    flags = (*TWO_EPOCHS, '--model-ema', '--resume', str(path))
    for change, words in [*UNFIT, (None, 'no such file')]:
        if change is None:
            path.unlink()
        else:
            rewrite(path, {key: value for key, value in {**sound, **change}.items() if value is not None})
        assert train.main(command(data, output, *flags)) == 2, change
        said = capsys.readouterr().err
        assert not [word for word in ('--resume', str(path), *words.split()) if word not in said], said
        assert 'Traceback' not in said
        assert not output.parent.exists()


@pytest.mark.parametrize(
    ('model', 'flags', 'words'),
    [
        (('--model', 'test_resnet', '--img-size', '32'), (), "'encoded' 'test_resnet'"),
        (TINY[:-1], (), 'does not fit embedding.weight --model-kwargs'),  # 8 bits, not 64
        ((*TINY, 'encoding=onehot'), (), 'encoding=p2be encoding=onehot'),
        (TINY, ('--opt', 'adamwp2be'), '--opt adamwp2be goes on with the optimizer'),
        (TINY, ('--p2be-lr', '0.5'), '--p2be-lr 0.5 goes on with the optimizer'),
    ],
)
def test_other_runs_are_refused(data, straight, capsys, model, flags, words):
    before = {path: path.stat().st_mtime_ns for path in straight.iterdir()}
    argv = command(data, straight, *VIEWS, *flags, '--resume', str(straight / 'last.pth.tar'), model=model)
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert not [word for word in words.split() if word not in said]
    assert before == {path: path.stat().st_mtime_ns for path in straight.iterdir()}


@pytest.mark.parametrize(
    ('recorded', 'model'),
    [
        ({'backbone': 'test_resnet', 'num_bits': 8}, TINY),
        (None, TINY),
        # the bits of a table that timm's train.py was given are those of the weights
        ({'backbone': 'test_resnet', 'embedding': 'someone/table'}, TINY[:-1]),
    ],
)
def test_timms_own_checkpoints_resume(data, straight, tmp_path, recorded, model):
    """Without the fields that are ours, and with arguments of another script."""
    state = checkpoint(straight / 'checkpoint-0.pth.tar')
    state['args'] = argparse.Namespace(model='encoded', opt='sgdp2be', lr=0.05)
    if recorded is not None:
        state['args'].model_kwargs = recorded
    torch.save(state, tmp_path / 'timm.pth.tar')
    flags = (*TWO_EPOCHS, '--sched-on-updates', '--resume', str(tmp_path / 'timm.pth.tar'))
    assert train.main(command(data, tmp_path / 'run', *flags, model=model)) == 0
    assert_same_state(straight / 'last.pth.tar', tmp_path / 'run' / 'last.pth.tar')
