import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, SHORT, write_images

import transfer
from timm_p2be import PixelEmbedding
from timm_p2be.checkpoints import read_checkpoint
from transfer_report import columns, markdown, picture

OUTCOMES: list[dict[str, Any]] = [
    {'target': 'cifar10', 'table': table, 'mode': mode, 'seed': seed, 'error': error}
    for table, mode, seed, error in (
        ('own', 'learned', 1, 10.0),
        ('own', 'learned', 2, 12.0),
        ('imagenet', 'fixed', 1, 9.5),
    )
]


@pytest.fixture(scope='module')
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp('table')
    PixelEmbedding(num_bits=8).save_pretrained(folder)
    return folder


def _argv(data: Path, table: Path, output: Path, *flags: str) -> list[str]:
    words = ['--data-dir', str(data), '--img-size', '32', *SHORT, *CPU, '--opt', 'sgdp2be', '--lr', '0.05']
    words += ['--model-kwargs', 'backbone=test_resnet']
    target = f'noise: {" ".join(words)}'
    tables = ('--table', f'given={table}')
    return ['--target', target, *tables, '--model', 'encoded', '--output', str(output), *flags]


def test_a_fixed_table_stays_and_a_learned_one_moves(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / 'out'
    argv = _argv(write_images(tmp_path / 'data'), table, output, '--seeds', '1')
    assert transfer.main(argv) == 0, capsys.readouterr().err
    source = PixelEmbedding.from_pretrained(table).weight
    assert source is not None

    def trained(cell: str) -> torch.Tensor:
        state = read_checkpoint(output / cell / 'last.pth.tar').state_dict
        return next(value for name, value in state.items() if name.endswith('embedding.weight'))

    assert torch.equal(trained('noise-given-fixed-1'), source)
    assert not torch.equal(trained('noise-given-learned-1'), source)
    assert trained('noise-own-fixed-1').shape == (256, 64)
    content = json.loads((output / 'transfer.json').read_text())
    assert [(run['table'], run['mode']) for run in content['runs']] == [
        ('own', 'learned'),
        ('own', 'fixed'),
        ('given', 'learned'),
        ('given', 'fixed'),
    ]
    assert all(0 <= run['error'] <= 100 and run['epochs'] == 1 for run in content['runs'])
    assert len(content['tables']['given']['codes_sha256']) == 64
    assert 'noise' in (output / 'transfer.md').read_text()
    assert (output / 'transfer.png').stat().st_size > 0

    # finished runs are kept: the second call trains nothing
    files = {file: file.stat().st_mtime_ns for file in output.glob('*/last.pth.tar')}
    assert len(files) == 4
    assert transfer.main(argv) == 0
    assert {file: file.stat().st_mtime_ns for file in output.glob('*/last.pth.tar')} == files

    # other flags do not mix with them
    assert (
        transfer.main([*_argv(tmp_path / 'data', table, output, '--seeds', '1')[:1], argv[1] + ' --hflip 0', *argv[2:]])
        == 1
    )
    assert 'other flags' in capsys.readouterr().err


def test_an_interrupted_run_is_resumed_from_a_whole_checkpoint(tmp_path: Path, table: Path) -> None:
    argv = _argv(write_images(tmp_path / 'data'), table, tmp_path / 'out', '--mode', 'fixed')
    argv[1] = argv[1].replace('--epochs 1', '--epochs 2')
    assert transfer.main(argv) == 0
    run = tmp_path / 'out' / 'noise-given-fixed-42'
    whole = read_checkpoint(run / 'last.pth.tar').state_dict
    for name in ('outcome.json', 'last.pth.tar', 'checkpoint-1.pth.tar', 'model_best.pth.tar'):
        (run / name).unlink(missing_ok=True)
    (run / 'tmp.pth.tar').write_bytes(b'half a file')  # timm's, of a kill while saving
    assert transfer.main(argv) == 0
    assert f'resume: {run / "checkpoint-0.pth.tar"}' in (run / 'args.yaml').read_text()
    resumed = read_checkpoint(run / 'last.pth.tar').state_dict
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_failing_run_names_its_log(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transfer.main(_argv(tmp_path / 'nothing', table, tmp_path / 'out', '--mode', 'learned')) == 1
    assert 'log.txt' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cifar10', 'write .NAME: FLAGS'),
        ('cifar10:', 'write .NAME: FLAGS'),
        ('a/b: -c r.yaml', 'letters, digits'),
        ('a: -c r.yaml --seed 3', '--seed is set by'),
        ('a: -c r.yaml --model=wrn40_2', '--model is set by'),
    ],
)
def test_bad_targets(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transfer.parse_targets([text])


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match='Two targets'):
        transfer.parse_targets(['a: -c r.yaml', 'a: -c s.yaml'])
    with pytest.raises(ValueError, match='there already'):
        transfer.parse_tables(['a=x', 'a=y'])
    with pytest.raises(ValueError, match='there already'):
        transfer.parse_tables(['own=x'])
    with pytest.raises(ValueError, match='write NAME=FOLDER'):
        transfer.parse_tables(['a'])
    with pytest.raises(ValueError, match='letters, digits and _ only'):
        transfer.parse_tables(['a-b=x'])  # a-b, c and a, b-c would share a folder


def test_a_seed_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match='2'):
        transfer.main(['--target', 'a: -c r.yaml', '--seeds', '1', '1'])
    assert 'a seed twice is one run' in capsys.readouterr().err


def test_a_table_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(transfer.__file__)), '--target', 'a: --epochs 1', '--table', f'b={tmp_path}']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'transfer.py: error:' in done.stderr
    assert 'Traceback' not in done.stderr


def test_table_of_results() -> None:
    assert columns(OUTCOMES) == [('own', 'learned'), ('imagenet', 'fixed')]
    head, _, row = markdown(OUTCOMES).splitlines()
    assert head == '| target | own, learned | imagenet, fixed | seeds |'
    assert row == '| cifar10 | 11.00 ± 1.41 | 9.50 | 2 |'


def test_picture_marks_every_seed() -> None:
    drawn = picture(OUTCOMES, 'title').convert('RGB')
    colours = {colour for _, colour in drawn.getcolors(maxcolors=100000) or []}
    assert {(0x2B, 0x6C, 0xB0), (0xC0, 0x56, 0x21)} <= colours
    fewer = picture([OUTCOMES[0], *OUTCOMES[2:]], 'title').convert('RGB')
    assert drawn.tobytes() != fewer.tobytes()
