"""ImageNet-C on disk: folders of images, published or written by this package."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.class_map import load_class_map
from torch import Tensor
from torch.utils.data import Dataset

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_data import (
    Batch,
    check_severities,
    checked_limit,
    choose_names,
    describe_stored,
    load_batches,
    read_record,
)

_EXTENSIONS = ('.jpeg', '.jpg', '.png')


class CorruptedFolders:
    """ImageNet-C: `<name>/<severity>/<class>/<file>`, images of 224x224 that are used as they are stored.

    The folders of the corruptions may lie one level deeper, as in the published archives (`noise/gaussian_noise`). All
    severities must have the same files; that is checked when the set is opened.

    Args:
        folder: of the corruptions.
        names: as in `CorruptedArrays`; any names are allowed, as in ImageNet-C-bar.
        severities: ascending.
        extra: add the four extra corruptions.
        limit: first images of each severity only, in the order of class folders and file names.
        class_map: timm's file of class names, one a line; without it classes are the sorted folders.

    Raises:
        ValueError: missing folders, severities with other files, classes that the class map does not have.
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
        self.folder = folder
        found = corruption_folders(folder)
        self.names = choose_names(set(found), names, extra, str(folder))
        self.severities = check_severities(severities)
        self._folders = {name: found[name] for name in self.names}
        self._files = self._list_files()
        self._record = read_record(folder)
        index = self._class_index(class_map)
        self._all_labels = np.array([index[file.partition('/')[0]] for file in self._files], np.int64)
        self._count = checked_limit(limit, len(self._files))

    def __len__(self) -> int:
        return self._count

    def labels(self, name: str, severity: int) -> NDArray[np.int64]:
        """Return the labels (N,), the same for all."""
        return self._all_labels[: self._count]

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices.

        Raises:
            ValueError: an image that cannot be read or has another size than 224x224.
        """
        root = self._folders[name] / str(severity)
        yield from load_batches(_Files(root, self._files, self._all_labels), spans, workers)

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Nothing to do."""

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data; the fingerprint covers file names, first and last image of each set."""
        digest = hashlib.sha256('\n'.join(self._files).encode() + self._all_labels.tobytes())
        for name in self.names:
            for severity in self.severities:
                for file in (self._files[0], self._files[-1]):
                    digest.update((self._folders[name] / str(severity) / file).read_bytes())
        known = set(self.names) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
        label = 'ImageNet-C' if known and len(self._files) == 50_000 and self.num_classes == 1000 else None
        description = describe_stored(self, label, self.folder, len(self._files), self._record)
        return description | {'fingerprint': digest.hexdigest()}

    def _list_files(self) -> list[str]:
        """Return the files of every severity, as 'class/file'."""
        reference: list[str] = []
        for name in self.names:
            for severity in self.severities:
                root = self._folders[name] / str(severity)
                files = _images_below(root)
                if not files:
                    raise ValueError(f'No images in {root}; expected {root}/<class>/*.JPEG. Unpack the archive again.')
                if reference and files != reference:
                    odd = min(set(files) ^ set(reference))
                    where = 'only there' if odd in set(files) else 'missing there'
                    first = self._folders[self.names[0]] / str(self.severities[0])
                    raise ValueError(
                        f'{root} has {len(files)} images, {first} has {len(reference)}; {odd} is {where}. All '
                        'severities must have the same classes and images. Unpack the archive again.'
                    )
                reference = reference or files
        return reference

    def _class_index(self, class_map: str) -> dict[str, int]:
        folders = sorted({file.partition('/')[0] for file in self._files})
        self.num_classes = None
        if class_map:
            try:
                index = {str(key): int(value) for key, value in load_class_map(class_map).items()}
            except (AssertionError, OSError, ValueError) as error:
                raise ValueError(f'--class-map {class_map}: {error}') from error
        elif self._record is not None and 'classes' in self._record:
            index = self._record['classes']
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
        return torch.from_numpy(pixels).permute(2, 0, 1), int(self.labels[index])


def corruption_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of corruptions, directly below `folder` or one level deeper.

    Raises:
        ValueError: one corruption in two places.
    """
    found: dict[str, Path] = {}
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in below:
        inside = [path] if _has_severities(path) else [deeper for deeper in sorted(path.iterdir()) if deeper.is_dir()]
        for place in filter(_has_severities, inside):
            if place.name in found:
                raise ValueError(f'{place.name} is there twice, {found[place.name]} and {place}; move one away.')
            found[place.name] = place
    return found


def _has_severities(path: Path) -> bool:
    return any((path / str(severity)).is_dir() for severity in SEVERITIES)


def _images_below(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    files = []
    for name in classes:
        with os.scandir(root / name) as entries:
            files += sorted(f'{name}/{entry.name}' for entry in entries if entry.name.lower().endswith(_EXTENSIONS))
    return files
