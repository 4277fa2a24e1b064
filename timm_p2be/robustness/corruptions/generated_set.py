"""Clean images, corrupted on the fly and kept in a cache on request, or written as a set of their own."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from timm_p2be.files import atomic_write, temporary_beside, write_json
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES, corrupt
from timm_p2be.robustness.corruptions.corrupted_sets import CorruptedSet, Images, Rows, choose_names, spans_of
from timm_p2be.robustness.corruptions.stored_sets import DESCRIPTION, open_array, read_description
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.images import ImageSet

Step = Callable[[int, str], None]  # told how many more images are written, and of what
_SPAN = 64  # images written at once


class GeneratedSet(CorruptedSet):
    """Clean images, corrupted on the fly: image i has noise of its own, drawn from (seed, i), however it is loaded.

    Args:
        clean, suite: see `corrupt` for their sizes.
        names, extra: see `choose_names`.
        cache: folder that keeps the images, one array per corruption; None makes them anew each time.

    Example:
        >>> from PIL import Image
        >>> clean = ImageSet([(Image.new('RGB', (32, 32)), 3)], 'black', size=32)
        >>> data = GeneratedSet(clean, 'cifar', ['brightness'])
        >>> images, labels = next(data.batches('brightness', 5, [range(1)]))
        >>> images.shape, labels.tolist()
        (torch.Size([1, 3, 32, 32]), [3])
    """

    def __init__(
        self,
        clean: ImageSet,
        suite: str = 'cifar',
        names: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        extra: bool = False,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        if suite not in SUITES or clean.size != SUITES[suite] or seed < 0:
            raise ValueError(
                f'Got suite={suite!r} for images of {clean.size} pixels and seed={seed}; allowed are the suites (and '
                f'sizes) {SUITES} and seeds from 0.'
            )
        super().__init__(choose_names(names, extra), severities)
        self.clean, self.suite, self.seed, self.cache = clean, suite, seed, cache
        self._cached: dict[str, NDArray[np.uint8]] = {}
        if 'frost' in self.names:
            try:
                corrupt(np.zeros((clean.size, clean.size, 3), np.uint8), 'frost', 1, suite)
            except (ModuleNotFoundError, FileNotFoundError) as error:
                raise ValueError(f'{error}. Or choose other corruptions.') from error

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def labels(self) -> NDArray[np.int64]:  # type: ignore[override]
        """The labels (N,); this reads all clean images once."""
        return np.array([self.clean[index][1] for index in range(len(self))], np.int64)

    def images(self, name: str, severity: int) -> Images:
        """Return the images of one corruption and severity, of the cache if they are there."""
        if name in self._cached:
            return Rows(self._cached[name], self.labels, self.severities.index(severity) * len(self))
        return _Corrupted(self, name, severity)

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Fill the cache with a corruption, unless it is there; no part of a file is left when that fails."""
        if self.cache is None or name in self._cached:
            return
        made = self.describe() | {'corruption': name, 'severities': list(self.severities)}
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
        path = self.cache / f'{name}-{digest}.npy'
        if not path.exists():
            write_array(self, name, path, workers, lambda count, what: beat(f'{what}: filling the cache'))
            write_json(path.with_suffix('.json'), made)
        shape = (len(self.severities) * len(self), self.clean.size, self.clean.size, 3)
        self._cached[name] = open_array(path, shape)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data, and all that its pixels depend on."""
        clean = self.clean.describe()
        return {
            'label': f'{clean["name"]}-C-style',
            'suite': self.suite,
            'source': 'generated',
            'official': False,
            'images': len(self),
            'subset': clean['subset'],
            'transform': clean['transform'],
            'seed': self.seed,
            'fingerprint': clean['fingerprint'],
            'versions': environment()['versions'],
        }


class _Corrupted(Dataset[tuple[NDArray[np.uint8], int]]):
    """One corruption and severity of clean images."""

    def __init__(self, data: GeneratedSet, name: str, severity: int) -> None:
        self.clean, self.parameters, self.seed = data.clean, (name, severity, data.suite), data.seed

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        pixels, label = self.clean[index]
        return corrupt(pixels, *self.parameters, (self.seed, index)), label


def write_set(
    data: GeneratedSet, folder: Path, workers: int = 0, overwrite: bool = False, step: Step | None = None
) -> int:
    """Write a whole set: arrays for the suite 'cifar', folders of JPEG files for 'imagenet'.

    What an earlier call of the same data has finished is kept. The JPEG files have quality 85 and optimized tables, as
    ImageNet-C's (make_imagenet_c.py), so they differ from the images that `data` makes.

    Args:
        data: what to write; for the suite 'cifar' it has all severities.
        folder: empty, or with the same data.
        workers: processes that corrupt images.
        overwrite: delete a set that this package wrote there before.
        step: told of progress.

    Returns:
        Number of arrays, or of folders of one severity, that were written now.
    """
    arrays = data.suite == 'cifar'
    if arrays and data.severities != SEVERITIES:
        raise ValueError(
            f'Got severities {list(data.severities)}; the layout of CIFAR-C has all of {list(SEVERITIES)}.'
        )
    made = data.describe() | {'storage': 'uint8 arrays' if arrays else 'JPEG, quality 85, optimized'}
    if not arrays:
        made['classes'] = {_class_folder(int(label)): int(label) for label in np.unique(data.labels)}
    _claim(folder, made, overwrite)
    if arrays and not (folder / 'labels.npy').exists():
        with atomic_write(folder / 'labels.npy') as file:
            np.save(file, np.tile(data.labels, len(SEVERITIES)))
    step = step or (lambda count, what: None)
    written = 0
    for name in data.names:
        for severities in [data.severities] if arrays else [(severity,) for severity in data.severities]:
            path = folder / f'{name}.npy' if arrays else folder / name / str(severities[0])
            if path.exists():
                step(len(severities) * len(data), f'{name}: there already')
                continue
            if arrays:
                write_array(data, name, path, workers, step)
            else:
                _write_severity(data, name, severities[0], path, workers, step)
            written += 1
    return written


def write_array(data: CorruptedSet, name: str, path: Path, workers: int, step: Step) -> None:
    """Write one corruption as CIFAR-C has it: uint8 (S N, H, W, 3), the lowest severity first.

    The file appears when it is whole. It is written from front to back, not through a memory map, which would turn a
    full disk into a crash.
    """
    side, total = SUITES[data.suite], len(data.severities) * len(data)
    with atomic_write(path) as file:
        header = {'descr': '|u1', 'fortran_order': False, 'shape': (total, side, side, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for severity in data.severities:
            for images, _ in data.batches(name, severity, spans_of(len(data), _SPAN), workers):
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                step(len(images), f'{name} {severity}')


def _write_severity(data: GeneratedSet, name: str, severity: int, path: Path, workers: int, step: Step) -> None:
    """Write `<name>/<severity>/<class>/<index>.JPEG`, under another name until it is complete."""
    temporary, index = temporary_beside(path.parent.with_name(f'{name}-{severity}')), 0
    try:
        for images, labels in data.batches(name, severity, spans_of(len(data), _SPAN), workers):
            for pixels, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
                file = temporary / _class_folder(label) / f'{index:08d}.JPEG'
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'JPEG', quality=85, optimize=True)
                index += 1
            step(len(images), f'{name} {severity}')
        path.parent.mkdir(exist_ok=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _claim(folder: Path, made: dict[str, Any], overwrite: bool) -> None:
    """Write the description first, so that a part of a set is never taken for a published one."""
    if overwrite and (folder / DESCRIPTION).exists():
        for name in ('labels', *CORRUPTIONS, *EXTRA_CORRUPTIONS):  # what is written here, and nothing else
            (folder / f'{name}.npy').unlink(missing_ok=True)
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / DESCRIPTION).unlink()
    old = read_description(folder)
    if old is not None and old != made:
        changed = ', '.join(sorted(key for key in {*old, *made} if old.get(key) != made.get(key)))
        raise ValueError(f'{folder} has a set of another {changed}. Choose another --output, or pass --overwrite.')
    if old is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty and has no {DESCRIPTION} of this command. Choose another --output.')
    write_json(folder / DESCRIPTION, made)


def _class_folder(label: int) -> str:
    return f'{label:04d}'
