"""CIFAR-C on disk: one array per corruption, published or written by this package."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from timm_p2be.robustness.corruptions import SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_data import (
    Batch,
    check_severities,
    checked_limit,
    choose_names,
    describe_stored,
    read_record,
)


class CorruptedArrays:
    """CIFAR-C: `<name>.npy`, uint8 (5 N, 32, 32, 3), severity 1 first, and `labels.npy`, N labels five times.

    Files are checked when the set is opened, and mapped into memory, never loaded.

    Args:
        folder: of the files.
        names: corruptions; None takes the 15 of the benchmark, or whatever is there if none of them is.
        severities: ascending.
        extra: add the four extra corruptions.
        limit: first images of each severity only.

    Raises:
        ValueError: missing, truncated or unsuitable files.
    """

    suite = 'cifar'

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        extra: bool = False,
        limit: int | None = None,
    ) -> None:
        self.folder = folder
        found = {path.stem for path in folder.glob('*.npy') if not path.name.startswith('.')} - {'labels'}
        self.names = choose_names(found, names, extra, str(folder))
        self.severities = check_severities(severities)
        self._labels = self._read_labels()
        self.total = len(self._labels)
        self._arrays = {name: self._open(name) for name in self.names}
        self._count = checked_limit(limit, self.total)
        self._record = read_record(folder)
        published = self._record is None and self.total == 10_000
        self.num_classes = int(self._labels.max()) + 1 if published else None

    def __len__(self) -> int:
        return self._count

    def labels(self, name: str, severity: int) -> NDArray[np.int64]:
        """Return the labels (N,), the same for all."""
        return self._labels[: self._count]

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices, read from the file without workers."""
        start = (severity - 1) * self.total
        for span in spans:
            pixels = np.array(self._arrays[name][start + span.start : start + span.stop])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
            yield images, torch.from_numpy(self._labels[span.start : span.stop])

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Nothing to do."""

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers labels, and first and last image of each file."""
        digest = hashlib.sha256(self._labels.tobytes())
        for array in self._arrays.values():
            digest.update(array[0].tobytes() + array[-1].tobytes())
        label = {10: 'CIFAR-10-C', 100: 'CIFAR-100-C'}.get(self.num_classes or 0)
        return describe_stored(self, label, self.folder, self.total, self._record) | {'fingerprint': digest.hexdigest()}

    def _read_labels(self) -> NDArray[np.int64]:
        path = self.folder / 'labels.npy'
        labels = open_array(path)
        if labels.ndim != 1 or labels.dtype.kind not in 'iu' or len(labels) == 0 or len(labels) % len(SEVERITIES):
            raise ValueError(
                f'{path} holds {labels.dtype} of shape {labels.shape}; allowed are integers (5 N,), the labels of '
                'the N images once per severity. Take the labels.npy that came with the images.'
            )
        rows = np.asarray(labels, np.int64).reshape(len(SEVERITIES), -1)
        if (rows != rows[0]).any():
            raise ValueError(
                f'The labels of {path} differ between severities; each severity has the same images in the same order. '
                'Take the labels.npy that came with the images.'
            )
        if rows.min() < 0:
            raise ValueError(f'{path} has the label {rows.min()}; labels count from 0.')
        return rows[0].copy()

    def _open(self, name: str) -> NDArray[np.uint8]:
        path = self.folder / f'{name}.npy'
        array = open_array(path, mapped=True)
        side = SUITES[self.suite]
        allowed = (len(SEVERITIES) * self.total, side, side, 3)
        if array.dtype != np.uint8 or array.shape != allowed:
            raise ValueError(
                f'{path} holds {array.dtype} of shape {array.shape}; with {allowed[0]} labels in labels.npy it must be '
                f'uint8 of shape {allowed}. Download or write the folder again.'
            )
        return array


def open_array(path: Path, mapped: bool = False) -> NDArray[Any]:
    """Return the array of a .npy file.

    Raises:
        ValueError: missing, truncated, or no array.
    """
    if not path.is_file():
        raise ValueError(f'No file {path}; CIFAR-C has labels.npy and one .npy per corruption. Download it again.')
    try:
        return np.load(path, mmap_mode='r' if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f'{path} ({path.stat().st_size} bytes) cannot be read as an array, perhaps it is cut off: {error}. '
            'Download or write it again.'
        ) from error
