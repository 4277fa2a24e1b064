"""Corrupted images on disk and on the fly: what is read, what is refused, what a cache keeps."""

import importlib.util
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import forked, hold
from numpy.typing import NDArray
from PIL import Image

from timm_p2be.robustness.corruptions import SEVERITIES, corrupt, weather
from timm_p2be.robustness.corruptions.corrupted_sets import CorruptedSet, spans_of
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet, write_set
from timm_p2be.robustness.corruptions.stored_sets import DESCRIPTION, open_corrupted
from timm_p2be.robustness.images import ImageSet

COUNT = 6
NAMES = ('gaussian_noise', 'fog')


def clean_images(count: int = COUNT, size: int = 32) -> ImageSet:
    generator = np.random.default_rng(1)
    images = [
        (Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)), index % 3) for index in range(count)
    ]
    return ImageSet(images, 'noise', size=size)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A small folder of the layout of CIFAR-C: image i of severity s is filled with 10 s + i."""
    folder = tmp_path / 'arrays'
    folder.mkdir()
    levels = np.add.outer(10 * np.arange(1, 6), np.arange(COUNT)).reshape(-1, 1, 1, 1)
    for name in NAMES:
        np.save(folder / f'{name}.npy', np.broadcast_to(levels, (5 * COUNT, 32, 32, 3)).astype(np.uint8))
    np.save(folder / 'labels.npy', np.tile(np.arange(COUNT, dtype=np.uint8), 5))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A small folder of the layout of ImageNet-C; one corruption lies a level deeper, as in the archives."""
    root = tmp_path / 'folders'
    for name in ('noise/gaussian_noise', 'fog'):
        for severity in (1, 2):
            for number, wnid in enumerate(('n02', 'n01', 'n03')):
                path = root / name / str(severity) / wnid / f'{number}.png'
                path.parent.mkdir(parents=True)
                Image.new('RGB', (224, 224), (10 * severity + number,) * 3).save(path)
    return root


def pixels_of(data: Any, name: str, severity: int, workers: int = 0, batch_size: int = 4) -> NDArray[np.uint8]:
    batches = data.batches(name, severity, spans_of(len(data), batch_size), workers)
    return np.concatenate([images.numpy() for images, _ in batches])


def labels_of(data: CorruptedSet) -> list[int]:
    return [data.image(data.names[0], data.severities[0], index)[1] for index in range(len(data))]


def test_arrays_are_severity_major(arrays: Path) -> None:
    data = open_corrupted(arrays, NAMES)
    assert len(data) == COUNT
    images = pixels_of(data, 'fog', 3)
    assert images.shape == (COUNT, 3, 32, 32)
    assert images[:, 0, 0, 0].tolist() == [30, 31, 32, 33, 34, 35]
    assert labels_of(data) == list(range(COUNT))


def test_limit_takes_the_first_images_of_each_severity(arrays: Path) -> None:
    data = open_corrupted(arrays, NAMES, limit=2)
    assert pixels_of(data, 'fog', 5)[:, 0, 0, 0].tolist() == [50, 51]
    description = data.describe()
    assert description['subset'] == f'first 2 of {COUNT} at each severity'
    assert not description['official']  # small sets never are
    assert description['label'] == 'arrays (cifar layout)'


def test_published_sizes_are_recognized(tmp_path: Path) -> None:
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (50_000, 32, 32, 3)}
    with (tmp_path / 'fog.npy').open('wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 50_000 * 32 * 32 * 3)  # sparse: takes no space
    np.save(tmp_path / 'labels.npy', np.tile(np.arange(10_000) % 10, 5))
    data = open_corrupted(tmp_path, ['fog'], limit=3)
    assert data.num_classes == 10
    assert data.describe()['label'] == 'CIFAR-10-C'
    assert data.describe()['official']


def save(name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        np.save(folder / name, make(np.load(folder / name)))

    return damage


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, keep)


# what is done to the arrays, how they are opened, and words of the error
BAD_ARRAYS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    'truncated': (cut('fog.npy', 5000), {}, r'fog\.npy cannot be read.* cut off'),
    'truncated labels': (cut('labels.npy', 130), {}, r'labels\.npy'),
    'no labels': (lambda folder: (folder / 'labels.npy').unlink(), {}, r'labels\.npy cannot be read.*No such file'),
    'missing': (lambda folder: (folder / 'fog.npy').unlink(), {}, 'no corruption fog; it has gaussian_noise'),
    'dtype': (save('fog.npy', lambda x: x.astype(np.float32)), {}, 'holds float32 .* must be uint8'),
    'size': (save('fog.npy', lambda x: np.zeros((30, 28, 28, 3), np.uint8)), {}, r'28, 3\).*\(30, 32, 32, 3\)'),
    'label count': (save('labels.npy', lambda x: x[:29]), {}, r'shape \(29,\)'),
    'label dtype': (save('labels.npy', lambda x: x.astype(float)), {}, 'integers'),
    'labels per severity': (save('labels.npy', lambda x: np.arange(30)), {}, 'the same for each severity'),
    'negative label': (save('labels.npy', lambda x: x.astype(int) - 1), {}, 'integers from 0'),
    'the 15': (lambda folder: None, {'names': None}, 'no corruption shot_noise, .*; it has gaussian_noise, fog'),
    'severity': (lambda folder: None, {'severities': [1, 6]}, r'choose from \[1, 2, 3, 4, 5\]'),
    'limit': (lambda folder: None, {'limit': 0}, 'limit=0'),
    'neither layout': (lambda folder: [path.unlink() for path in folder.iterdir()], {}, 'neither'),
    'no folder': (shutil.rmtree, {}, 'No folder'),
}


@pytest.mark.parametrize('case', BAD_ARRAYS)
def test_bad_arrays_are_refused_on_opening(arrays: Path, case: str) -> None:
    damage, more, message = BAD_ARRAYS[case]
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        open_corrupted(arrays, **{'names': NAMES, **more})


def test_folders_give_stored_pixels_and_sorted_classes(folders: Path) -> None:
    data = open_corrupted(folders, ['gaussian_noise', 'fog'], [1, 2])
    assert labels_of(data) == [0, 1, 2]  # n01, n02, n03
    assert pixels_of(data, 'fog', 2)[:, 0, 0, 0].tolist() == [21, 20, 22]
    np.testing.assert_array_equal(pixels_of(data, 'fog', 2, 0), pixels_of(data, 'fog', 2, 2, batch_size=1))
    assert data.num_classes == 3
    assert 'none' in data.describe()['transform']


def test_class_map(folders: Path, tmp_path: Path) -> None:
    (tmp_path / 'map.txt').write_text('n00\nn01\nn02\nn03\n')
    data = open_corrupted(folders, ['fog'], [1], class_map=str(tmp_path / 'map.txt'))
    assert labels_of(data) == [1, 2, 3]
    assert data.num_classes is None
    (tmp_path / 'map.txt').write_text('n01\n')
    with pytest.raises(ValueError, match=r'2 class folders .* not in the class map'):
        open_corrupted(folders, ['fog'], [1], class_map=str(tmp_path / 'map.txt'))


def test_other_corruptions_are_allowed_as_in_imagenet_c_bar(folders: Path) -> None:
    (folders / 'noise' / 'gaussian_noise').rename(folders / 'plasma_noise')
    (folders / 'fog').rename(folders / 'caustic_refraction')
    assert open_corrupted(folders, severities=[1]).names == ('caustic_refraction', 'plasma_noise')


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    'other files': (
        lambda folders: (folders / 'fog' / '2' / 'n03' / '2.png').unlink(),
        r'fog/2 has 2 images, .* has 3; n03/2\.png is missing',
    ),
    'no severity': (lambda folders: shutil.rmtree(folders / 'fog' / '2'), r'No images in .*fog/2'),
    'twice': (lambda folders: (folders / 'more' / 'fog' / '1').mkdir(parents=True), 'fog is there twice'),
}


@pytest.mark.parametrize('case', BAD_FOLDERS)
def test_bad_folders_are_refused_on_opening(folders: Path, case: str) -> None:
    damage, message = BAD_FOLDERS[case]
    damage(folders)
    with pytest.raises(ValueError, match=message):
        open_corrupted(folders, ['gaussian_noise', 'fog'], [1, 2])


@pytest.mark.parametrize('workers', [0, 1])
def test_stored_images_are_never_resized_and_damage_is_named(folders: Path, workers: int) -> None:
    path = folders / 'fog' / '1' / 'n01' / '1.png'
    Image.new('RGB', (256, 256)).save(path)
    with pytest.raises(ValueError, match=r'^[^\n]*1\.png has 256x256 pixels, not 224x224\. [^\n]*$'):
        pixels_of(open_corrupted(folders, ['fog'], [1]), 'fog', 1, workers)
    path.write_bytes(b'\x89PNG')
    with pytest.raises(ValueError, match=r'1\.png cannot be read as an image'):
        pixels_of(open_corrupted(folders, ['fog'], [1]), 'fog', 1, workers)


def test_generated_noise_depends_on_seed_and_index_alone() -> None:
    clean = clean_images()
    data = GeneratedSet(clean, 'cifar', NAMES, seed=7)
    images = pixels_of(data, 'fog', 2, workers=0)
    np.testing.assert_array_equal(images, pixels_of(data, 'fog', 2, workers=2, batch_size=1))
    expected = corrupt(clean[4][0], 'fog', 2, 'cifar', (7, 4))
    np.testing.assert_array_equal(images[4].transpose(1, 2, 0), expected)
    assert data.describe()['label'] == 'noise-C-style'
    assert not data.describe()['official']
    assert (pixels_of(GeneratedSet(clean, 'cifar', NAMES, seed=8), 'fog', 2) != images).any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'names': ['rain']}, 'has no corruption rain'),
        ({'severities': [6]}, r'severities \[6\]'),
    ],
)
def test_generated_set_refuses_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratedSet(clean_images(), **arguments)


def test_frost_without_its_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    weather.frost_picture.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'timm-p2be\[robustness\]'"):
        GeneratedSet(clean_images())
    GeneratedSet(clean_images(), names=['fog'])


def test_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match='too large'):
            write_set(GeneratedSet(clean_images(), 'cifar', ['fog']), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, 'labels.npy']


def test_written_arrays_are_read_back(tmp_path: Path) -> None:
    data = GeneratedSet(clean_images(), 'cifar', NAMES, seed=5)
    assert write_set(data, tmp_path, workers=2) == 2
    stored = open_corrupted(tmp_path, NAMES)
    for name in NAMES:
        for severity in SEVERITIES:
            np.testing.assert_array_equal(pixels_of(stored, name, severity), pixels_of(data, name, severity))
    assert labels_of(stored) == [0, 1, 2, 0, 1, 2]
    description = stored.describe()
    assert description['label'] == 'noise-C-style'
    assert description['seed'] == 5
    assert not description['official']


def test_writing_goes_on_and_never_mixes(tmp_path: Path) -> None:
    assert write_set(GeneratedSet(clean_images(), 'cifar', ['fog']), tmp_path) == 1
    assert write_set(GeneratedSet(clean_images(), 'cifar', NAMES), tmp_path) == 1  # fog is there
    with pytest.raises(ValueError, match='a set of another seed'):
        write_set(GeneratedSet(clean_images(), 'cifar', NAMES, seed=1), tmp_path)
    assert write_set(GeneratedSet(clean_images(), 'cifar', ['fog'], seed=1), tmp_path, overwrite=True) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, 'fog.npy', 'labels.npy']


def test_foreign_folders_and_parts_of_the_severities_are_not_written(arrays: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(ValueError, match='is not empty'):
            write_set(GeneratedSet(clean_images(), 'cifar', ['fog']), arrays, overwrite=overwrite)
    with pytest.raises(ValueError, match='CIFAR-C has all'):
        write_set(GeneratedSet(clean_images(), 'cifar', ['fog'], [1]), arrays / 'new')


def test_written_folders_keep_the_labels(tmp_path: Path) -> None:
    source = [(Image.new('RGB', (224, 224), (40 * label,) * 3), label) for label in (5, 2, 5)]
    data = GeneratedSet(ImageSet(source, 'gray', size=224), 'imagenet', ['brightness'], [2])
    assert write_set(data, tmp_path) == 1
    assert write_set(data, tmp_path) == 0
    stored = open_corrupted(tmp_path, ['brightness'], [2])
    assert labels_of(stored) == [2, 5, 5]
    assert abs(int(pixels_of(stored, 'brightness', 2)[0, 0, 0, 0]) - int(40 * 2 + 0.2 * 255)) <= 2  # JPEG


def test_images_made_on_the_fly_are_those_that_would_be_written(tmp_path: Path) -> None:
    """Through JPEG, as those of ImageNet-C: it takes noise away."""
    data = GeneratedSet(
        ImageSet([(Image.new('RGB', (224, 224), 'gray'), 3)], 'gray', size=224), 'imagenet', ['shot_noise']
    )
    write_set(data, tmp_path / 'set')
    made, label = data.image('shot_noise', 3, 0)
    assert np.array_equal(made, np.asarray(Image.open(tmp_path / 'set/shot_noise/3/0003/00000000.JPEG')))
    assert label == 3
    assert made.std() < 0.95 * data.raw('shot_noise', 3, 0)[0].std()


def test_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    data = GeneratedSet(clean_images(), 'cifar', ['fog'])
    with forked(lambda told: write_set(data, tmp_path, step=lambda _, what: hold(told, what))) as (_, told):
        assert told.recv() == 'fog 1'
    assert sorted(path.name for path in tmp_path.glob('[!.]*')) == [DESCRIPTION, 'labels.npy']
    (left,) = tmp_path.glob('.*')
    os.utime(left, (0, 0))  # a day later it is nobody's any more
    assert write_set(data, tmp_path) == 1
    assert len(open_corrupted(tmp_path, ['fog'])) == COUNT
    assert list(tmp_path.glob('.*')) == []  # what the killed one left is gone
