"""Corrupted images on disk, in the layouts of CIFAR-C and ImageNet-C, published or written by this package."""

import glob
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data.readers.class_map import load_class_map

from timm_p2be.data.image_files import hash_files, open_image
from timm_p2be.files import read_json
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_sets import Batch, CorruptedSet, Labeled, choose_names
from timm_p2be.robustness.images import as_pixels

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
    """Return the corrupted images of a folder, of whichever layout it has.

    Args:
        names, extra: see `choose_names`; ImageNet-C-bar has none of the 15.
        limit: first images of each severity only.
        class_map: of ImageNet-C, timm's file of class names, one a line; without it classes are the sorted folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'No folder {folder}; name the folder that holds the corrupted images.')
    if limit is not None and limit < 1:
        raise ValueError(f'Got limit={limit}; take at least 1 image.')
    found = {path.stem: path for path in folder.glob('[!.]*.npy')}
    arrays = bool(found)
    found = found or _corruption_folders(folder)
    chosen = {name: found[name] for name in choose_names(names, extra, set(found) - {'labels'}, str(folder))}
    if arrays:
        return CorruptedArrays(folder, chosen, severities, limit)
    return CorruptedFolders(folder, chosen, severities, limit, class_map)


class StoredSet(CorruptedSet):
    """Images of a folder, of which the first `limit` of each severity are used; `places` are those of corruptions."""

    all_labels: NDArray[np.int64]
    published: str | None = None  # the label of the set that has this layout and size

    def __init__(self, folder: Path, places: dict[str, Path], severities: Sequence[int], limit: int | None) -> None:
        super().__init__(places, severities)
        self.folder, self.limit = folder, limit
        description = folder / DESCRIPTION
        self.made = read_json(description) if description.exists() else None

    def __len__(self) -> int:
        return len(self.all_labels[: self.limit])

    def files(self) -> Iterable[Path]:
        """Return the files that the images come from."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data.

        The fingerprint covers labels, first and last image of each set, and name and size of every file.
        """
        made, side, count, total = self.made or {}, SUITES[self.suite], len(self), len(self.all_labels)
        digest = hashlib.sha256(self.all_labels.tobytes() + hash_files(self.files(), self.folder).encode())
        for name, severity, index in itertools.product(self.names, self.severities, (0, total - 1)):
            digest.update(self.image(name, severity, index)[0].tobytes())
        return {
            'label': made.get('label') or self.published or f'{self.folder.resolve().name} ({self.suite} layout)',
            'suite': self.suite,
            'source': 'stored, written by timm-p2be' if made else 'stored',
            'official': self.published is not None and not made,
            'images': count,
            'classes': len(np.unique(self.all_labels[: self.limit])),
            'subset': 'all' if count == total else f'first {count} of {total} at each severity',
            'transform': f'none: stored {side}x{side} pixels as they are',
            'seed': made.get('seed'),
            'record': self.made,
            'fingerprint': digest.hexdigest(),
        }


class CorruptedArrays(StoredSet):
    """CIFAR-C: `<name>.npy`, uint8 (5 N, 32, 32, 3), severity 1 first, and `labels.npy`, N labels five times.

    Files are checked when the set is opened, and mapped into memory, never loaded.
    """

    suite = 'cifar'

    def __init__(self, folder: Path, places: dict[str, Path], severities: Sequence[int], limit: int | None) -> None:
        super().__init__(folder, places, severities, limit)
        labels = _open_array(folder / 'labels.npy')
        rows = labels.reshape(5, -1) if labels.ndim == 1 and len(labels) and len(labels) % 5 == 0 else None
        if rows is None or labels.dtype.kind not in 'iu' or (rows != rows[0]).any() or rows.min() < 0:
            raise ValueError(
                f'{folder / "labels.npy"} holds {labels.dtype} of shape {labels.shape}; allowed are integers from 0, '
                '(5 N,): the labels of the N images, the same for each severity. Take the file that came with them.'
            )
        self.all_labels = rows[0].astype(np.int64)
        total, side = len(self.all_labels), SUITES[self.suite]
        self._places = places
        self._arrays = {name: _open_array(path, (5 * total, side, side, 3)) for name, path in places.items()}
        if self.made is None and total == 10_000:
            self.num_classes = int(self.all_labels.max()) + 1
            self.published = {10: 'CIFAR-10-C', 100: 'CIFAR-100-C'}.get(self.num_classes)

    def files(self) -> Iterable[Path]:
        return [self.folder / 'labels.npy', *self._places.values()]

    def image(self, name: str, severity: int, index: int) -> Labeled:
        return self._arrays[name][(severity - 1) * len(self.all_labels) + index], int(self.all_labels[index])

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        return super().batches(name, severity, spans)  # handing mapped rows to workers would cost more than it saves


class CorruptedFolders(StoredSet):
    """ImageNet-C: `<name>/<severity>/<class>/<file>`, images of 224x224 that are used as they are stored.

    The folders of the corruptions may lie one level deeper, as in the published archives (`noise/gaussian_noise`). All
    severities must have the same files; that is checked when the set is opened.
    """

    suite = 'imagenet'

    def __init__(
        self, folder: Path, places: dict[str, Path], severities: Sequence[int], limit: int | None, class_map: str
    ) -> None:
        super().__init__(folder, places, severities, limit)
        self._roots = {(n, severity): places[n] / str(severity) for n in self.names for severity in self.severities}
        first, *others = self._roots.values()
        self._files = _images_below(first)  # as 'class/file'
        for root in others:
            odd = set(files := _images_below(root)) ^ set(self._files)
            if odd:
                raise ValueError(
                    f'{root} has {len(files)} images, {first} has {len(self._files)}; {min(odd)} is missing in one of '
                    'them. All severities must have the same classes and images. Unpack the archive again.'
                )
        classes = self._classes(sorted({file.partition('/')[0] for file in self._files}), class_map)
        self.all_labels = np.array([classes[file.partition('/')[0]] for file in self._files], np.int64)
        known = set(self.names) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
        if known and len(self._files) == 50_000 and self.num_classes == 1000:
            self.published = 'ImageNet-C'

    def _classes(self, folders: list[str], class_map: str) -> dict[str, int]:
        """Return the class of each folder: of the map, or its number if we wrote the set, else by sorting."""
        if not class_map:
            if self.made is not None:
                return {folder: int(folder) for folder in folders}
            self.num_classes, self.class_names = len(folders), folders
            return {folder: number for number, folder in enumerate(folders)}
        try:
            index = {str(key): int(value) for key, value in load_class_map(class_map).items()}
        except (AssertionError, OSError, ValueError) as error:
            raise ValueError(f'--class-map {class_map}: {error}') from error
        missing = [folder for folder in folders if folder not in index]
        if missing:
            raise ValueError(
                f'{len(missing)} class folders of {self.folder}, first {missing[0]!r}, are not in the class map. Pass '
                '--class-map FILE with the folder names, one a line, in the order of the classes.'
            )
        return index

    def files(self) -> Iterable[Path]:
        return (root / file for root in self._roots.values() for file in self._files)

    def image(self, name: str, severity: int, index: int) -> Labeled:
        path = self._roots[name, severity] / self._files[index]
        return as_pixels(open_image(path, str(path)), SUITES[self.suite], str(path)), int(self.all_labels[index])


def _open_array(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Return the array of a .npy file; with a `shape`, uint8 pixels mapped into memory."""
    try:
        array = np.load(path, mmap_mode='r' if shape else None, allow_pickle=False)
    except Exception as error:  # numpy evaluates the header as Python, literals only
        raise ValueError(
            f'{path} cannot be read as an array, perhaps it is cut off: {error}. CIFAR-C has labels.npy and one .npy '
            'per corruption. Download or write it again.'
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
        for place in sorted({severity.parent for severity in severities}):
            if place.name in found:
                raise ValueError(f'{place.name} is there twice, {found[place.name]} and {place}; move one away.')
            found[place.name] = place
    if not found:
        raise ValueError(
            f'{folder} has neither <corruption>.npy and labels.npy (CIFAR-C) nor <corruption>/<1..5>/<class>/ '
            '(ImageNet-C). Unpack the published archive, and name the folder that holds the corruptions.'
        )
    return found


def _images_below(root: Path) -> list[str]:
    """Return the images of a severity, by class and name."""
    files = sorted(file for file in glob.glob('*/*', root_dir=root) if file.lower().endswith(_EXTENSIONS))  # noqa: PTH207
    if not files:
        raise ValueError(f'No images in {root}; expected {root}/<class>/*.JPEG. Unpack the archive again.')
    return files
