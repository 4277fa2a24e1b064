"""Corrupted images on disk, in the layouts of CIFAR-C and ImageNet-C, published or written by this package."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.class_map import load_class_map
from torch.utils.data import Dataset

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_sets import CorruptedSet, Images, Rows, choose_names

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
        folder: of the images.
        names, extra: see `choose_names`; ImageNet-C-bar has none of the 15.
        severities: of 1 to 5.
        limit: first images of each severity only.
        class_map: of ImageNet-C, timm's file of class names, one a line; without it classes are the sorted folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'No folder {folder}; name the folder that holds the corrupted images.')
    if limit is not None and limit < 1:
        raise ValueError(f'Got limit={limit}; take at least 1 image.')
    arrays = any(folder.glob('*.npy'))
    found = {path.stem: path for path in folder.glob('[!.]*.npy')} if arrays else _corruption_folders(folder)
    chosen = {name: found[name] for name in choose_names(names, extra, set(found) - {'labels'}, str(folder))}
    if arrays:
        return CorruptedArrays(folder, chosen, severities, limit)
    return CorruptedFolders(folder, chosen, severities, limit, class_map)


class StoredSet(CorruptedSet):
    """Images of a folder, of which the first `limit` of each severity are used; `places` are those of corruptions."""

    all_labels: NDArray[np.int64]

    def __init__(self, folder: Path, places: dict[str, Path], severities: Sequence[int]) -> None:
        super().__init__(places, severities)
        self.folder = folder
        self.made = read_description(folder)

    def _describe(self, published: str | None, fingerprint: str) -> dict[str, Any]:
        """Return the description; `published` is the label of the set that has this layout and size, if any."""
        made, side, count, total = self.made or {}, SUITES[self.suite], len(self), len(self.all_labels)
        return {
            'label': made.get('label') or published or f'{self.folder.resolve().name} ({self.suite} layout)',
            'suite': self.suite,
            'source': 'stored, written by timm-p2be' if made else 'stored',
            'official': published is not None and not made,
            'images': count,
            'classes': len(np.unique(self.labels)),
            'subset': 'all' if count == total else f'first {count} of {total} at each severity',
            'transform': f'none: stored {side}x{side} pixels as they are',
            'seed': made.get('seed'),
            'record': self.made,
            'fingerprint': fingerprint,
        }


class CorruptedArrays(StoredSet):
    """CIFAR-C: `<name>.npy`, uint8 (5 N, 32, 32, 3), severity 1 first, and `labels.npy`, N labels five times.

    Files are checked when the set is opened, and mapped into memory, never loaded.
    """

    suite = 'cifar'

    def __init__(self, folder: Path, places: dict[str, Path], severities: Sequence[int], limit: int | None) -> None:
        super().__init__(folder, places, severities)
        labels = open_array(folder / 'labels.npy')
        rows = labels.reshape(5, -1) if labels.ndim == 1 and len(labels) and len(labels) % 5 == 0 else None
        if rows is None or labels.dtype.kind not in 'iu' or (rows != rows[0]).any() or rows.min() < 0:
            raise ValueError(
                f'{folder / "labels.npy"} holds {labels.dtype} of shape {labels.shape}; allowed are integers from 0, '
                '(5 N,): the labels of the N images, the same for each severity. Take the file that came with them.'
            )
        self.all_labels = rows[0].astype(np.int64)
        self.labels = self.all_labels[:limit]
        total, side = len(self.all_labels), SUITES[self.suite]
        self._arrays = {name: open_array(path, (5 * total, side, side, 3)) for name, path in places.items()}
        self.num_classes = int(self.all_labels.max()) + 1 if self.made is None and total == 10_000 else None

    def images(self, name: str, severity: int) -> Images:
        """Return the images of one corruption and severity."""
        return Rows(self._arrays[name], self.labels, (severity - 1) * len(self.all_labels))

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers labels, and first and last image of each file."""
        digest = hashlib.sha256(self.all_labels.tobytes())
        for array in self._arrays.values():
            digest.update(array[0].tobytes() + array[-1].tobytes())
        published = {10: 'CIFAR-10-C', 100: 'CIFAR-100-C'}.get(self.num_classes or 0)
        return self._describe(published, digest.hexdigest())


class CorruptedFolders(StoredSet):
    """ImageNet-C: `<name>/<severity>/<class>/<file>`, images of 224x224 that are used as they are stored.

    The folders of the corruptions may lie one level deeper, as in the published archives (`noise/gaussian_noise`). All
    severities must have the same files; that is checked when the set is opened.
    """

    suite = 'imagenet'

    def __init__(
        self, folder: Path, places: dict[str, Path], severities: Sequence[int], limit: int | None, class_map: str
    ) -> None:
        super().__init__(folder, places, severities)
        self._roots = {(n, severity): places[n] / str(severity) for n in self.names for severity in self.severities}
        self._files = self._list_files()
        index = self._class_index(class_map)
        self.all_labels = np.array([index[file.partition('/')[0]] for file in self._files], np.int64)
        self.labels = self.all_labels[:limit]

    def images(self, name: str, severity: int) -> Images:
        """Return the images of one corruption and severity."""
        return _Files(self._roots[name, severity], self._files, self.labels)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers file names, first and last image of each set."""
        digest = hashlib.sha256('\n'.join(self._files).encode() + self.all_labels.tobytes())
        for root in self._roots.values():
            for file in (self._files[0], self._files[-1]):
                digest.update((root / file).read_bytes())
        known = set(self.names) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
        published = known and len(self._files) == 50_000 and self.num_classes == 1000
        return self._describe('ImageNet-C' if published else None, digest.hexdigest())

    def _list_files(self) -> list[str]:
        """Return the files of every severity, as 'class/file'."""
        first, *others = self._roots.values()
        reference = _images_below(first)
        for root in others:
            odd = set(files := _images_below(root)) ^ set(reference)
            if odd:
                raise ValueError(
                    f'{root} has {len(files)} images, {first} has {len(reference)}; {min(odd)} is missing in one of '
                    'them. All severities must have the same classes and images. Unpack the archive again.'
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


class _Files(Dataset[tuple[NDArray[np.uint8], int]]):
    """Stored images by index."""

    def __init__(self, root: Path, files: Sequence[str], labels: NDArray[np.int64]) -> None:
        self.root, self.files, self.labels = root, files, labels

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
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
        return pixels, int(self.labels[index])


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return how a set that this package wrote was made, or None beside any other set."""
    path = folder / DESCRIPTION
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def open_array(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Return the array of a .npy file; with a `shape`, uint8 pixels mapped into memory."""
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
    if not found:
        raise ValueError(
            f'{folder} has neither <corruption>.npy and labels.npy (CIFAR-C) nor <corruption>/<1..5>/<class>/ '
            '(ImageNet-C). Unpack the published archive, and name the folder that holds the corruptions.'
        )
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
