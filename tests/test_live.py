"""Figures, trackers, curves and `timm-p2be status` of a run."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import OPEN_FILES, command, write_images

from timm_p2be import PixelEmbedding
from timm_p2be.training.live import packed_bits, table_figures
from timm_p2be.training.output import LOCK
from timm_p2be.training.run import main as train
from timm_p2be_cli import main

pytestmark = OPEN_FILES


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('images'))


def test_figures_of_a_table() -> None:
    embedding = PixelEmbedding('p2be', num_bits=4)
    with torch.no_grad():
        embedding.weight.fill_(0.5)
    before = packed_bits(embedding)
    with torch.no_grad():
        embedding.weight[0, 0] = -0.5
        embedding.weight[255] = 1.0
    assert table_figures(embedding, before) == {
        'bits_flipped': pytest.approx(100 / 1024),
        'neighbor_distance': pytest.approx(1 / 255),
        'dead_latents': pytest.approx(100 / 256),
    }


def test_trackers_get_losses_figures_and_codes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[Any]] = {'wandb': [], 'trackio': []}
    for name, seen in calls.items():
        module = SimpleNamespace(
            init=lambda seen=seen, **settings: seen.append(settings),
            log=lambda values, step, seen=seen: seen.append((step, values)),
            finish=lambda seen=seen: seen.append('finished'),
            Image=lambda image: image.size,
        )
        monkeypatch.setitem(sys.modules, name, module)
    words = ('--epochs', '2', '--log-interval', '2', '--log', 'wandb', 'trackio', '--log-project', 'mine')
    assert train(command(data, tmp_path / 'run', *words)) == 0
    first, *logged, last = calls['wandb']
    assert (first['project'], first['name'], first['config']['lr'], last) == ('mine', 'run', 0.05, 'finished')
    assert [step for step, _ in logged] == [2, 3, 3, 3, 5, 6, 6, 6]  # every 2nd update and the last, 3 an epoch; epochs
    assert {'train/loss', 'train/smoothness', 'lr/embedding', 'images_per_second'} <= {*logged[0][1]}
    assert {'train/bits_flipped', 'eval/top1'} <= {*logged[2][1]}
    assert logged[3][1] == {'codes': (768, 192)}
    assert len(calls['trackio']) == len(calls['wandb'])


def test_tensorboard_has_scalars_and_pictures(data: Path, tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(command(data, tmp_path / 'run', '--log', 'tensorboard', '--log-interval', '1')) == 0
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard'))
    events.Reload()
    assert [event.step for event in events.Scalars('train/ce')] == [1, 2, 3, 3]
    assert [event.step for event in events.Images('codes')] == [3]


def test_a_missing_tracker_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, 'trackio', None)
    assert train(command(data, tmp_path / 'run', '--log', 'trackio')) == 2
    assert "pip install 'timm-p2be[log]'" in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_status_of_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / 'run'
    with pytest.raises(SystemExit):
        main(['status', str(run)])
    assert 'args.yaml' in capsys.readouterr().err
    assert train(command(data, run, '--epochs', '2')) == 0
    with (run / 'summary.csv').open() as file:
        best = max(csv.DictReader(file), key=lambda row: float(row['eval_top1']))
    assert (run / 'curves.png').stat().st_size > 10_000
    assert main(['status', str(run)]) == 0
    text = capsys.readouterr().out
    for words in ('finished', '2 of 2 done', f'eval_top1 {float(best["eval_top1"]):.4g}', 'checkpoint-1.pth.tar'):
        assert words in text
    (run / 'summary.csv').unlink()
    main(['status', str(run)])
    assert '--experiment run --resume auto' in capsys.readouterr().out


def test_status_of_a_run_at_work(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(command(data, tmp_path / 'run')) == 0
    capsys.readouterr()
    hold = f"""if True:
        import pathlib, sys, timm_p2be.locks
        lock = timm_p2be.locks.FolderLock(pathlib.Path(sys.argv[1]), {LOCK!r}, '')
        print('held', flush=True)
        sys.stdin.read()"""
    words = [sys.executable, '-c', hold, str(tmp_path / 'run')]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert main(['status', str(tmp_path / 'run')]) == 0
        other.communicate()
    assert 'at work (host ' in capsys.readouterr().out
