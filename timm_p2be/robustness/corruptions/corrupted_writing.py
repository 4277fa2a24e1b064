"""Writes corrupted sets in the layouts of CIFAR-C and ImageNet-C, with a record of how they were made."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_p2be.files import atomic_write, temporary_beside, write_json
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.corruptions.corrupted_data import RECORD, read_record, spans_of
from timm_p2be.robustness.corruptions.corrupted_sets import GeneratedSet, write_array

Step = Callable[[int, str], None]  # told how many more images are written, and of what


def write_set(
    data: GeneratedSet, folder: Path, workers: int = 0, overwrite: bool = False, step: Step | None = None
) -> int:
    """Write a whole set: arrays for the suite 'cifar', folders of JPEG files for 'imagenet'.

    What an earlier call of the same data has finished is kept. The JPEG files have quality 85 and optimized tables, as
    ImageNet-C's (make_imagenet_c.py), so they differ from the images that `data` makes.

    Args:
        data: what to write.
        folder: empty, or with the same data.
        workers: processes that corrupt images.
        overwrite: delete a set that this package wrote there before.
        step: told of progress.

    Returns:
        Number of arrays, or of folders of one severity, that were written now.

    Raises:
        ValueError: the folder has other data, or the suite 'cifar' without one of its severities.
        OSError: the disk is full or the folder is not writable; finished parts are kept, no half ones.
    """
    arrays = data.suite == 'cifar'
    if arrays and data.severities != SEVERITIES:
        raise ValueError(
            f'Got severities {list(data.severities)}; the layout of CIFAR-C has all of {list(SEVERITIES)}.'
        )
    record = data.describe() | {'storage': 'uint8 arrays' if arrays else 'JPEG, quality 85, optimized'}
    if not arrays:
        record['classes'] = {_class_folder(int(label)): int(label) for label in np.unique(data.labels('', 1))}
    _claim(folder, record, overwrite)
    step = step or (lambda count, what: None)
    return (_write_arrays if arrays else _write_folders)(data, folder, workers, step)


def _claim(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Write the record first, so that a part of a set is never taken for a published one."""
    if overwrite and (folder / RECORD).exists():
        _delete_set(folder)
    old = read_record(folder)
    if old is not None and old != record:
        changed = ', '.join(sorted(key for key in {*old, *record} if old.get(key) != record.get(key)))
        raise ValueError(f'{folder} has a set of another {changed}. Choose another --output, or pass --overwrite.')
    if old is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty and has no {RECORD} of this command. Choose another --output.')
    write_json(folder / RECORD, record)


def _delete_set(folder: Path) -> None:
    """Delete what this module writes, and nothing else; the record goes last."""
    for name in ('labels', *CORRUPTIONS, *EXTRA_CORRUPTIONS):
        (folder / f'{name}.npy').unlink(missing_ok=True)
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RECORD).unlink()


def _write_arrays(data: GeneratedSet, folder: Path, workers: int, step: Step) -> int:
    written = 0
    if not (folder / 'labels.npy').exists():
        with atomic_write(folder / 'labels.npy') as file:
            np.save(file, np.tile(data.labels('', 1), len(SEVERITIES)))
    for name in data.names:
        path = folder / f'{name}.npy'
        if path.exists():
            step(len(SEVERITIES) * len(data), f'{name}: there already')
        else:
            write_array(data, name, path, workers, step)
            written += 1
    return written


def _write_folders(data: GeneratedSet, folder: Path, workers: int, step: Step) -> int:
    """Write `<name>/<severity>/<class>/<index>.JPEG`, each severity under another name until it is complete."""
    written = 0
    for name in data.names:
        for severity in data.severities:
            final = folder / name / str(severity)
            if final.exists():
                step(len(data), f'{name} {severity}: there already')
                continue
            temporary = temporary_beside(folder / f'{name}-{severity}')
            try:
                _write_severity(data, name, severity, temporary, workers, step)
                final.parent.mkdir(exist_ok=True)
                temporary.replace(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            written += 1
    return written


def _write_severity(data: GeneratedSet, name: str, severity: int, root: Path, workers: int, step: Step) -> None:
    index = 0
    for images, labels in data.batches(name, severity, spans_of(len(data), 64), workers):
        for pixels, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
            path = root / _class_folder(label) / f'{index:08d}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path, 'JPEG', quality=85, optimize=True)
            index += 1
        step(len(images), f'{name} {severity}')


def _class_folder(label: int) -> str:
    return f'{label:04d}'
