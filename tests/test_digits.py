"""The handwritten digits of the quickstart, and the quickstart on a few images."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import write_images
from sklearn.datasets import load_digits

import quickstart
from timm_p2be.data.digits import write_digits


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / 'copy'))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_every_digit_is_there_once_under_its_label(digits):
    labels = load_digits().target
    paths = sorted(digits.glob('*/*/*.png'), key=lambda path: path.stem)
    assert [path.stem for path in paths] == [f'{index:04d}' for index in range(1797)]
    assert [int(path.parent.name) for path in paths] == labels.tolist()
    assert Counter(path.parts[-3] for path in paths) == {'train': 1438, 'validation': 359}
    for label, total in Counter(labels.tolist()).items():
        held_out = len(list(digits.glob(f'validation/{label}/*.png')))
        assert held_out == pytest.approx(total / 5, abs=0.5)


def test_images_are_the_enlarged_digits(digits):
    """Averaging 4x4 blocks undoes the enlargement up to the filter's blur: every file shows its own digit."""
    originals = load_digits().images * 255 / 16
    levels: set[int] = set()
    for index in range(0, 1797, 60):
        (path,) = digits.glob(f'*/*/{index:04d}.png')
        with Image.open(path) as image:
            assert (image.mode, image.size, image.format) == ('RGB', (32, 32), 'PNG')
            pixels = np.asarray(image)
        assert (pixels == pixels[..., :1]).all()
        levels |= set(np.unique(pixels).tolist())
        blocks = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.abs(blocks - originals).mean(axis=(1, 2)).argmin() == index
        assert np.abs(blocks - originals[index]).mean() < 16
    assert {0, 255} <= levels


def test_a_partial_folder_is_completed_and_whole_files_are_left(copy, digits):
    shutil.rmtree(copy / 'train' / '3')
    next((copy / 'validation' / '7').iterdir()).unlink()
    times = {path: path.stat().st_mtime_ns for path in copy.rglob('*.png')}
    assert write_digits(str(copy)) == copy
    assert _files(copy) == _files(digits)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow  # .ci/run runs it whole
@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers leave images open
def test_both_networks_are_trained_and_compared(tmp_path, monkeypatch, capsys):
    def images(folder):
        return write_images(tmp_path / 'images', 130, 20, 'abcdefghij')

    monkeypatch.setattr(quickstart, 'write_digits', images)
    assert quickstart.main(['--output', str(tmp_path / 'out'), '--epochs', '1']) == 0
    printed = capsys.readouterr().out
    assert '| wrn10_2_p2be | wrn10_2 |' in printed
    assert '| mean corruption error |' in printed
    assert {'codes.png', 'results.json', 'report.html'} <= {path.name for path in (tmp_path / 'out').iterdir()}
