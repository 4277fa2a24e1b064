"""Streamed data: resumed inside an epoch it is what an unbroken run sees; damage is named, counted and bounded."""

import io
import json
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import OPEN_FILES, VIEWS, assert_same_state, at_call, checkpoint, command, summary

from timm_p2be.training import run as training
from timm_p2be.training.epoch import Trainer

pytest.importorskip('webdataset', reason="timm's wds/ reader needs it: pip install 'timm-p2be[data]'")
pytestmark = OPEN_FILES
Capture = pytest.CaptureFixture[str]
WDS = ('--dataset', 'wds/shards', *VIEWS)


def write_shards(folder: Path, shards: int = 4, each: int = 8) -> Path:
    """Write random images as tar files: `shards` of training and one of validation."""
    generator = np.random.default_rng(0)
    names = {'train': [f'train-{n}.tar' for n in range(shards)], 'validation': ['validation-0.tar']}
    for name in [*names['train'], *names['validation']]:
        with tarfile.open(folder / name, 'w') as tar:
            for index in range(each):
                image = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, 'PNG')
                for ending, content in (('png', image.getvalue()), ('cls', b'%d' % (index % 2))):
                    member = tarfile.TarInfo(f'{name[:-4]}-{index}.{ending}')
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    splits = {
        split: {
            'name': split,
            'num_samples': each * len(files),
            'filenames': files,
            'shard_lengths': [each] * len(files),
        }
        for split, files in names.items()
    }
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))
    return folder


SLOW = pytest.mark.slow


def hfids(folder: Path) -> tuple[str, ...]:
    """Return flags that stream an image folder."""
    return ('--dataset', f'hfids/{folder}', '--train-num-samples', '24', '--val-num-samples', '8')


@pytest.mark.parametrize(
    ('kind', 'workers'), [('wds', '0'), pytest.param('wds', '2', marks=SLOW), pytest.param('hfids', '1', marks=SLOW)]
)
def test_resumed_inside_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: str
) -> None:
    straight, output = tmp_path / 'straight', tmp_path / 'run'
    flags = (*WDS, '--epochs', '2', '--workers', workers)
    if kind == 'wds':
        data = write_shards(tmp_path)
    else:
        flags = (*flags, *hfids(data))
        data = tmp_path / 'cache'
    assert training.main(command(data, straight, *flags)) == 0
    at_call(monkeypatch, Trainer, '_batch', 5, lambda: signal.raise_signal(signal.SIGTERM))
    assert training.main(command(data, output, *flags)) == 143
    (recovery,) = output.glob('recovery-*.pth.tar')
    position = checkpoint(recovery)['args'].position
    assert position['epoch'] == 1
    assert 0 < position['update'] < position['updates_per_epoch']
    assert training.main(command(data, output, *flags, '--resume', 'auto')) == 0
    assert_same_state(straight / 'last.pth.tar', output / 'last.pth.tar')
    assert summary(straight) == summary(output)


def test_damaged_shards_and_images(tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture) -> None:
    data = write_shards(tmp_path)
    cut, flipped, lost = (data / f'train-{number}.tar' for number in range(3))
    cut.write_bytes(cut.read_bytes()[:6000])
    content = flipped.read_bytes()
    flipped.write_bytes(content.replace(b'PNG', b'XXX', 1))
    lost.unlink()
    flags = (*WDS, '--epochs', '2')
    assert training.main(command(data, tmp_path / 'lenient', *flags, '--max-bad-samples', '3')) == 0
    for name in (
        f'{cut}: cannot be read: unexpected end',
        f'{flipped}: train-1-0: cannot be read',
        f'{lost}: cannot be read',
    ):
        assert caplog.text.count(f'Passed over {name}') == 1
    strict = command(data, tmp_path / 'strict', *flags, '--max-bad-samples', '2')
    assert training.main(strict) == 2
    said = capsys.readouterr().err
    assert ' 3 so far; --max-bad-samples allows 2. Get it again, or remove it. Stopped; go on with --resume' in said
    cut.write_bytes(content)
    assert training.main([*strict, '--resume', 'auto']) == 0
    (data / 'validation-0.tar').write_bytes(b'')
    assert training.main(command(data, tmp_path / 'other', *flags)) == 2
    assert 'validation-0.tar: cannot be read' in capsys.readouterr().err


def test_a_stream_that_ends_early_is_no_epoch(tmp_path: Path, capsys: Capture) -> None:
    data = write_shards(tmp_path, shards=1, each=16)
    assert training.main(command(data, tmp_path / 'run', *WDS, '--workers', '2')) == 2
    assert 'ended after 1 of 2 batches: a loader process found nothing to read. Take at most' in capsys.readouterr().err


def test_hfids_ends_at_the_first_image_it_cannot_read(data: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(data, tmp_path / 'images')
    (folder / 'train' / 'b' / '003.png').write_bytes(b'no image')
    assert training.main(command(tmp_path / 'cache', tmp_path / 'run', *VIEWS, *hfids(folder))) == 2
    said = capsys.readouterr().err
    assert 'The data set cannot be read on: ' in said
    assert 'If a file of it is damaged, get it again. Stopped; go on with --resume' in said
