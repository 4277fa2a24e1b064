import json
import shlex
import signal
from pathlib import Path

import published
import pytest
import torch
from runs import CPU, OPEN_FILES, SHORT, at_call

from timm_p2be import PixelEmbedding
from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.reproduce import transfer
from timm_p2be.training.epoch import Trainer

pytestmark = OPEN_FILES


@pytest.fixture(scope='module')
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp('table')
    PixelEmbedding(num_bits=8).save_pretrained(folder)
    return folder


def _argv(data: Path, table: Path, output: Path, *flags: str, more: str = '') -> list[str]:
    """Return the words of an experiment; `more` are flags of train.py."""
    words = ['--data-dir', str(data), '--img-size', '32', *SHORT, *CPU, '--opt', 'sgdp2be', '--lr', '0.05']
    target = ' '.join(['noise:', *words, '--model-kwargs', 'backbone=test_resnet', more])
    return ['--target', target, '--table', f'given={table}', '--model', 'encoded', '--output', str(output), *flags]


def test_a_fixed_table_stays_and_a_learned_one_moves(data, tmp_path, table, capsys):
    output = tmp_path / 'out'
    argv = _argv(data, table, output, '--seeds', '1')
    assert transfer.main(argv) == 0, capsys.readouterr().err
    source = PixelEmbedding.from_pretrained(table).weight

    def trained(cell: str) -> torch.Tensor:
        state = read_checkpoint(output / cell / 'last.pth.tar').state_dict
        return next(value for name, value in state.items() if name.endswith('embedding.weight'))

    assert torch.equal(trained('noise-given-fixed-1'), source)
    assert not torch.equal(trained('noise-given-learned-1'), source)
    assert trained('noise-own-fixed-1').shape == (256, 64)
    content = json.loads((output / 'results.json').read_text())
    runs = [f'{run["table"]} {run["mode"]}' for run in content['runs']]
    assert runs == ['own learned', 'own fixed', 'given learned', 'given fixed']
    assert all(0 <= run['figures']['clean'] <= 100 and run['epochs'] == 1 for run in content['runs'])
    assert content['settings']['table'] == f'own: the start of the recipe; given: {table}'
    assert '| table | noise, learned, clean | noise, fixed, clean |' in (output / 'report.md').read_text()
    assert 'data:image/svg+xml' in (output / 'report.html').read_text()

    # finished runs are kept: the second call trains nothing, and measures what it is asked for
    files = {file: file.stat().st_mtime_ns for file in output.glob('*/last.pth.tar')}
    assert len(files) == 4
    assert transfer.main([*argv, '--corruptions', '1']) == 0
    assert {file: file.stat().st_mtime_ns for file in output.glob('*/last.pth.tar')} == files
    runs = json.loads((output / 'results.json').read_text())['runs']
    assert all(0 <= run['figures']['corrupted'] <= 100 for run in runs)
    assert '| noise, learned, clean | noise, learned, corrupted |' in (output / 'report.md').read_text()

    # other flags do not mix with them
    with pytest.raises(SystemExit, match='2'):
        transfer.main([argv[0], f'{argv[1]} --hflip 0', *argv[2:]])
    assert 'holds a run with other flags (hflip: 0.5, not 0.0)' in capsys.readouterr().err


def test_flags_of_the_table_go_to_the_runs_that_they_apply_to(table):
    target = shlex.split('--data-dir data --opt sgdp2be --p2be-init normal --p2be-lr 0.01 --p2be-betas 0.9 0.99')
    tables = transfer.parse_tables([f'given={table}'])
    runs = transfer.plan({'noise': target}, tables, 'wrn10_2_p2be', ['learned', 'fixed'], [1])
    found = {(run.cell['table'], run.cell['mode']): ' '.join(run.words) for run in runs}
    words = '--data-dir data --opt sgdp2be{} --model wrn10_2_p2be --seed 1'
    rule, source = ' --p2be-lr 0.01 --p2be-betas 0.9 0.99', f' --p2be-embedding {table}'
    assert found == {
        ('own', 'learned'): words.format(' --p2be-init normal' + rule),
        ('own', 'fixed'): words.format(' --p2be-init normal') + ' --p2be-freeze',
        ('given', 'learned'): words.format(rule) + source,
        ('given', 'fixed'): words.format('') + source + ' --p2be-freeze',
    }


@pytest.mark.parametrize(
    ('flags', 'more', 'message'),
    [
        ('--model-kwargs embedding=a/b', '', 'names a table or freezes it'),
        ('-c freeze.yaml', '--mode learned', 'names a table or freezes it'),
        ('--hflop 1', '', 'train.py refuses its flags'),
        ("--val-split ''", '', 'give it a --val-split'),
    ],
)
def test_flags_are_checked_before_the_first_run(flags, more, message, tmp_path, table, capsys):
    (tmp_path / 'freeze.yaml').write_text('p2be_freeze: true\n')
    flags = flags.replace('freeze.yaml', str(tmp_path / 'freeze.yaml'))
    argv = _argv(tmp_path, table, tmp_path / 'out', *more.split(), more=flags)
    with pytest.raises(SystemExit, match='2'):
        transfer.main(argv)
    error = capsys.readouterr().err
    assert message in error.partition('Run noise-')[2]
    assert not (tmp_path / 'out').exists()


def test_sigterm_stops_the_run_where_the_same_command_goes_on(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / 'out' / 'noise-own-fixed-42'
    target, text, _, _, *rest = _argv(data, tmp_path, tmp_path / 'out', '--mode', 'fixed', more='--epochs 2')
    argv = [target, text, *rest]  # no table
    at_call(monkeypatch, Trainer, '_batch', 5, lambda: signal.raise_signal(signal.SIGTERM))
    assert transfer.main(argv) == 130
    assert capsys.readouterr().err.endswith('transfer.py: interrupted. The same command goes on from here.\n')
    assert 'Stopped by SIGTERM; go on with --resume' in (run / 'log.txt').read_text()
    (recovery,) = run.glob('recovery-*.pth.tar')
    assert transfer.main(argv) == 0
    assert f'resume: {recovery}' in (run / 'args.yaml').read_text()
    assert json.loads((run / 'outcome.json').read_text())['epochs'] == 2


def test_a_table_of_the_hub_is_one_commit_for_all_runs(hub, tmp_path):
    commit = hub.put('someone/table', published.embedding(tmp_path / 'one', 8))
    tables = transfer.parse_tables(['given=hf-hub:someone/table'])
    runs = transfer.plan({'noise': ['--data-dir', 'data']}, tables, 'wrn10_2_p2be', ['learned'], [1, 2])
    given = [run.words for run in runs if run.cell['table'] == 'given']
    assert [words[words.index('--p2be-embedding') + 1] for words in given] == [f'someone/table@{commit}'] * 2


def test_a_failing_run_names_its_log(tmp_path, table, capsys):
    assert transfer.main(_argv(tmp_path / 'nothing', table, tmp_path / 'out', '--mode', 'learned')) == 1
    assert 'log.txt' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('texts', 'words'),
    [
        (['cifar10'], 'write NAME: FLAGS'),
        (['cifar10:'], 'write NAME: FLAGS'),
        (['a/b: -c r.yaml'], 'letters digits'),
        (['a: -c r.yaml --seed 3'], '--seed set by'),
        (['a: -c r.yaml --model=wrn40_2'], '--model set by'),
        (['a: -c r.yaml', 'a: -c s.yaml'], "'a' already"),
        (['a=x', 'a=y'], "'a' already"),
        (['own=x'], "'own' already"),
        (['a'], 'write NAME=FOLDER'),
        (['a-b=x'], 'letters digits'),  # a-b, c and a, b-c would share a folder
    ],
)
def test_bad_targets_and_tables(texts, words):
    is_table = '=' in texts[0].partition(':')[0] or words.endswith('FOLDER')
    with pytest.raises(ValueError, match='.*'.join(words.split())):
        transfer.parse_tables(texts) if is_table else transfer.parse_targets(texts)


def test_a_table_that_is_none_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        transfer.main(['--target', 'a: --epochs 1', '--table', f'b={tmp_path}'])
    assert 'transfer.py: error:' in capsys.readouterr().err
