"""Corrupted images on disk, in the layouts of CIFAR-C and ImageNet-C, published or written by this package."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.class_map import load_class_map
from torch import Tensor
from torch.utils.data import Dataset

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_sets import (
    Batch,
    CorruptedSet,
    array_batches,
    image_tensor,
    load_batches,
)

DESCRIPTION = 'corrupted.json'  # beside sets that this package wrote: how they were made
_EXTENSIONS = ('.jpeg', '.jpg', '.png')


def open_corrupted(
    folder: str | Path,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    extra: bool = False,
    limit: int | None = None,
    class_map: str = '',
) -> 'StoredSet':
    """Return the corrupted images of a folder, of whichever layout it has; see the two classes.

    Args:
        folder: of the images.
        names: corruptions, see `CorruptedSet`; as in ImageNet-C-bar, any names are allowed.
        severities: of 1 to 5.
        extra: add the four extra corruptions.
        limit: first images of each severity only.
        class_map: of ImageNet-C, timm's file of class names, one a line; without it classes are the sorted folders.

    Raises:
        ValueError: none of the two layouts; missing, truncated or unsuitable files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'No folder {folder}; name the folder that holds the corrupted images.')
    if limit is not None and limit < 1:
        raise ValueError(f'Got limit={limit}; take at least 1 image.')
    if any(folder.glob('*.npy')):
        return CorruptedArrays(folder, names, severities, extra, limit)
    if _corruption_folders(folder):
        return CorruptedFolders(folder, names, severities, extra, limit, class_map)
    raise ValueError(
        f'{folder} has neither <corruption>.npy and labels.npy (CIFAR-C) nor <corruption>/<1..5>/<class>/ '
        '(ImageNet-C). Unpack the published archive, and name the folder that holds the corruptions.'
    )


class StoredSet(CorruptedSet):
    """Images of a folder.

    Attributes:
        folder: see `open_corrupted`.
        total: images at each severity, used or not.
    """

    folder: Path
    total: int
    made: dict[str, Any] | None  # how it was made, if this package wrote it

    def _describe(self, label: str | None, digest: str) -> dict[str, Any]:
        """Return the description; `label` is that of the published set which has the layout and size, if any."""
        made, side, count = self.made or {}, SUITES[self.suite], len(self)
        return {
            'label': made.get('label') or label or f'{self.folder.resolve().name} ({self.suite} layout)',
            'suite': self.suite,
            'source': 'stored, written by timm-p2be' if made else 'stored',
            'official': label is not None and not made,
            'images': count,
            'classes': len(np.unique(self.labels)),
            'subset': 'all' if count == self.total else f'first {count} of {self.total} at each severity',
            'transform': f'none: stored {side}x{side} pixels as they are',
            'seed': made.get('seed'),
            'record': self.made,
            'fingerprint': digest,
        }


class CorruptedArrays(StoredSet):
    """CIFAR-C: `<name>.npy`, uint8 (5 N, 32, 32, 3), severity 1 first, and `labels.npy`, N labels five times.

    Files are checked when the set is opened, and mapped into memory, never loaded.
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
        found = {path.stem for path in folder.glob('[!.]*.npy')} - {'labels'}
        super().__init__(names, severities, extra, found, str(folder))
        self.folder, self.made = folder, read_description(folder)
        labels = self._read_labels()
        self.total, self.labels = len(labels), labels[:limit]
        shape = (len(SEVERITIES) * self.total, *(SUITES[self.suite],) * 2, 3)
        self._arrays = {name: open_array(folder / f'{name}.npy', shape) for name in self.names}
        self.num_classes = int(labels.max()) + 1 if self.made is None and self.total == 10_000 else None

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices, read from the file without workers."""
        return array_batches(self._arrays[name], self.labels, (severity - 1) * self.total, spans)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers labels, and first and last image of each file."""
        digest = hashlib.sha256(self._read_labels().tobytes())
        for array in self._arrays.values():
            digest.update(array[0].tobytes() + array[-1].tobytes())
        label = {10: 'CIFAR-10-C', 100: 'CIFAR-100-C'}.get(self.num_classes or 0)
        return self._describe(label, digest.hexdigest())

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


class CorruptedFolders(StoredSet):
    """ImageNet-C: `<name>/<severity>/<class>/<file>`, images of 224x224 that are used as they are stored.

    The folders of the corruptions may lie one level deeper, as in the published archives (`noise/gaussian_noise`). All
    severities must have the same files; that is checked when the set is opened.
    """

    suite = 'imagenet'

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        extra: bool = False,
        limit: int | None = None,
        class_map: str = '',
    ) -> None:
        found = _corruption_folders(folder)
        super().__init__(names, severities, extra, set(found), str(folder))
        self.folder, self.made = folder, read_description(folder)
        self._roots = {(n, severity): found[n] / str(severity) for n in self.names for severity in self.severities}
        self._files = self._list_files()
        index = self._class_index(class_map)
        self._all_labels = np.array([index[file.partition('/')[0]] for file in self._files], np.int64)
        self.total, self.labels = len(self._files), self._all_labels[:limit]

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices.

        Raises:
            ValueError: an image that cannot be read or has another size than 224x224.
        """
        return load_batches(_Files(self._roots[name, severity], self._files, self.labels), spans, workers)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers file names, first and last image of each set."""
        digest = hashlib.sha256('\n'.join(self._files).encode() + self._all_labels.tobytes())
        for root in self._roots.values():
            for file in (self._files[0], self._files[-1]):
                digest.update((root / file).read_bytes())
        known = set(self.names) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
        published = known and self.total == 50_000 and self.num_classes == 1000
        return self._describe('ImageNet-C' if published else None, digest.hexdigest())

    def _list_files(self) -> list[str]:
        """Return the files of every severity, as 'class/file'."""
        first, *others = self._roots.values()
        reference = _images_below(first)
        for root in others:
            files = _images_below(root)
            if files != reference:
                odd = min(set(files) ^ set(reference))
                where = 'only there' if odd in files else 'missing there'
                raise ValueError(
                    f'{root} has {len(files)} images, {first} has {len(reference)}; {odd} is {where}. All '
                    'severities must have the same classes and images. Unpack the archive again.'
                )
        return reference

    def _class_index(self, class_map: str) -> dict[str, int]:
        folders = sorted({file.partition('/')[0] for file in self._files})
        if class_map:
            try:
                index = {str(key): int(value) for key, value in load_class_map(class_map).items()}
            except (AssertionError, OSError, ValueError) as error:
                raise ValueError(f'--class-map {class_map}: {error}') from error
        elif self.made is not None and 'classes' in self.made:
            index = self.made['classes']
        else:
            index = {folder: number for number, folder in enumerate(folders)}
            self.num_classes = len(folders)
        missing = [folder for folder in folders if folder not in index]
        if missing:
            raise ValueError(
                f'{len(missing)} class folders of {self.folder}, first {missing[0]!r}, are not in the class map. Pass '
                '--class-map FILE with the folder names, one a line, in the order of the classes.'
            )
        return index


class _Files(Dataset[tuple[Tensor, int]]):
    """Stored images by index."""

    def __init__(self, root: Path, files: Sequence[str], labels: NDArray[np.int64]) -> None:
        self.root, self.files, self.labels = root, files, labels

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, side = self.root / self.files[index], SUITES['imagenet']
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert('RGB'))
        except (OSError, SyntaxError) as error:
            raise ValueError(f'{path} cannot be read as an image: {error}. Unpack the archive again.') from error
        if pixels.shape[:2] != (side, side):
            raise ValueError(
                f'{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; ImageNet-C stores {side}x{side}, used without '
                'resizing, since resizing after the corruption changes its strength. Take the published images, or '
                'write a set with `timm-p2be corrupt --suite imagenet`.'
            )
        return image_tensor(pixels), int(self.labels[index])


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return how a set that this package wrote was made, or None beside any other set.

    Raises:
        ValueError: a damaged file.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    try:
        made = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(made['label'], str):
            raise TypeError('its label is no text')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}); write the set again.') from error
    return made


def open_array(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Return the array of a .npy file; with a `shape`, uint8 pixels mapped into memory.

    Raises:
        ValueError: missing, truncated, no array, or another dtype or shape.
    """
    if not path.is_file():
        raise ValueError(f'No file {path}; CIFAR-C has labels.npy and one .npy per corruption. Download it again.')
    try:
        array = np.load(path, mmap_mode='r' if shape else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f'{path} ({path.stat().st_size} bytes) cannot be read as an array, perhaps it is cut off: {error}. '
            'Download or write it again.'
        ) from error
    if shape and (array.dtype != np.uint8 or array.shape != shape):
        raise ValueError(
            f'{path} holds {array.dtype} of shape {array.shape}; with {shape[0]} labels it must be uint8 of shape '
            f'{shape}. Download or write it again.'
        )
    return array


def _corruption_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of corruptions, directly below `folder` or one level deeper."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        severities = [*path.glob('[1-5]')] or [*path.glob('*/[1-5]')]
        for place in sorted({severity.parent for severity in severities if severity.is_dir()}):
            if place.name in found:
                raise ValueError(f'{place.name} is there twice, {found[place.name]} and {place}; move one away.')
            found[place.name] = place
    return found


def _images_below(root: Path) -> list[str]:
    """Return the images of a severity, by class and name."""
    files = []
    for folder in sorted(path for path in root.glob('*') if path.is_dir()):
        with os.scandir(folder) as entries:  # millions of files
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(_EXTENSIONS))
        files += [f'{folder.name}/{name}' for name in names]
    if not files:
        raise ValueError(f'No images in {root}; expected {root}/<class>/*.JPEG. Unpack the archive again.')
    return files
