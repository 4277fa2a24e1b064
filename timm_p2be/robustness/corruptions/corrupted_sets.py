"""Corrupted sets: opened from disk, or generated from clean images and kept in a cache on request."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from timm_p2be.extras import require
from timm_p2be.files import atomic_write, write_json
from timm_p2be.robustness.corruptions import SEVERITIES, SUITES, corrupt
from timm_p2be.robustness.corruptions.corrupted_arrays import CorruptedArrays, open_array
from timm_p2be.robustness.corruptions.corrupted_data import (
    Batch,
    CorruptedSet,
    check_severities,
    choose_names,
    load_batches,
    spans_of,
)
from timm_p2be.robustness.corruptions.corrupted_folders import CorruptedFolders, corruption_folders
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.images import ImageSet

cv2 = require('cv2', extra='robustness')


def open_corrupted(
    folder: str | Path,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    extra: bool = False,
    limit: int | None = None,
    class_map: str = '',
) -> CorruptedArrays | CorruptedFolders:
    """Return the corrupted images of a folder, of whichever layout it has.

    Raises:
        ValueError: no folder, or none of the two layouts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'No folder {folder}; name the folder that holds the corrupted images.')
    if (folder / 'labels.npy').exists() or any(folder.glob('*.npy')):
        return CorruptedArrays(folder, names, severities, extra, limit)
    if corruption_folders(folder):
        return CorruptedFolders(folder, names, severities, extra, limit, class_map)
    raise ValueError(
        f'{folder} has neither <corruption>.npy and labels.npy (CIFAR-C) nor <corruption>/<1..5>/<class>/ '
        '(ImageNet-C). Unpack the published archive, and name the folder that holds the corruptions.'
    )


class GeneratedSet:
    """Clean images, corrupted on the fly: image i has noise of its own, drawn from (seed, i), however it is loaded.

    Args:
        clean: images of the suite's size.
        suite: 'cifar' or 'imagenet'.
        names: corruptions; None takes the 15 of the benchmark.
        severities: ascending.
        extra: add the four extra corruptions.
        seed: a non-negative integer.
        cache: folder that keeps the images, one array per corruption; None makes them anew each time.

    Attributes:
        clean: see the argument.

    Raises:
        ValueError: unknown corruption, severity or suite, images of another size, or frost without its photographs.

    Example:
        >>> from PIL import Image
        >>> clean = ImageSet([(Image.new('RGB', (32, 32)), 3)], 'black', size=32)
        >>> data = GeneratedSet(clean, 'cifar', ['brightness'])
        >>> images, labels = next(data.batches('brightness', 5, [range(1)]))
        >>> images.shape, labels.tolist()
        (torch.Size([1, 3, 32, 32]), [3])
    """

    num_classes: int | None = None  # an image reader does not tell

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
        if suite not in SUITES:
            raise ValueError(f'Unknown suite {suite!r}; choose one of {list(SUITES)}.')
        if clean.size != SUITES[suite]:
            raise ValueError(f"Got images of {clean.size} pixels; the suite '{suite}' has {SUITES[suite]}.")
        if seed < 0:
            raise ValueError(f'Got seed={seed}; it must be 0 or more.')
        self.clean, self.suite, self.seed, self.cache = clean, suite, seed, cache
        self.names = choose_names(None, names, extra, 'The benchmark')
        self.severities = check_severities(severities)
        self._cached: dict[str, NDArray[np.uint8]] = {}
        if 'frost' in self.names:
            try:
                corrupt(np.zeros((clean.size, clean.size, 3), np.uint8), 'frost', 1, suite)
            except (ModuleNotFoundError, FileNotFoundError) as error:
                raise ValueError(f'{error}. Or choose other corruptions.') from error

    def __len__(self) -> int:
        return len(self.clean)

    def labels(self, name: str, severity: int) -> NDArray[np.int64]:
        """Return the labels (N,), the same for all; this reads all clean images once."""
        return self._labels

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return np.array([self.clean[index][1] for index in range(len(self))], np.int64)

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices, corrupted by `workers` processes or read from the cache."""
        if name not in self._cached:
            images = _Corrupted(self.clean, name, severity, self.suite, self.seed)
            yield from load_batches(images, spans, workers, _one_thread)
            return
        start = self.severities.index(severity) * len(self)
        for span in spans:
            pixels = np.array(self._cached[name][start + span.start : start + span.stop])
            labels = torch.from_numpy(self._labels[span.start : span.stop])
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Fill the cache with a corruption, unless it is there.

        Raises:
            OSError: the disk is full or the folder is not writable; no part of a file is left.
        """
        if self.cache is None or name in self._cached:
            return
        record = self.describe() | {'corruption': name, 'severities': list(self.severities)}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
        path = self.cache / f'{name}-{digest}.npy'
        sidecar = path.with_suffix('.json')
        if not path.exists() or _recorded(sidecar) != record:
            write_array(self, name, path, workers, lambda count, what: beat(f'{what}: filling the cache'))
            write_json(sidecar, record)
        array = open_array(path, mapped=True)
        shape = (len(self.severities) * len(self), self.clean.size, self.clean.size, 3)
        if array.dtype != np.uint8 or array.shape != shape:
            raise ValueError(f'{path} holds {array.dtype} of shape {array.shape}, not {shape}; delete it.')
        self._cached[name] = array

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


class _Corrupted(Dataset[tuple[Tensor, int]]):
    """One corruption and severity of clean images."""

    def __init__(self, clean: ImageSet, name: str, severity: int, suite: str, seed: int) -> None:
        self.clean, self.name, self.severity, self.suite, self.seed = clean, name, severity, suite, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.clean[index]
        pixels = corrupt(pixels, self.name, self.severity, self.suite, (self.seed, index))
        return torch.from_numpy(pixels).permute(2, 0, 1), label


def _recorded(sidecar: Path) -> Any:
    try:
        return json.loads(sidecar.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and workers share the cores already


def write_array(
    data: CorruptedSet, name: str, path: Path, workers: int = 0, step: Callable[[int, str], None] | None = None
) -> None:
    """Write one corruption as CIFAR-C has it: uint8 (S N, H, W, 3), the lowest severity first.

    The file appears when it is whole. It is written from front to back, not through a memory map, which would turn a
    full disk into a crash.

    Raises:
        OSError: the disk is full or the folder is not writable; no part of the file is left.
    """
    side, total = SUITES[data.suite], len(data.severities) * len(data)
    with atomic_write(path) as file:
        header = {'descr': '|u1', 'fortran_order': False, 'shape': (total, side, side, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for severity in data.severities:
            for images, _ in data.batches(name, severity, spans_of(len(data), 64), workers):
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                if step is not None:
                    step(len(images), f'{name} {severity}')
