"""Clean images, corrupted on the fly, or written as a set of their own."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_p2be.files import atomic_folder, atomic_write, read_json, write_json
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES, corrupt
from timm_p2be.robustness.corruptions.corrupted_sets import CorruptedSet, Labeled, choose_names, load_batches, spans_of
from timm_p2be.robustness.corruptions.stored_sets import DESCRIPTION
from timm_p2be.robustness.corruptions.weather import FROST_PICTURES, frost_picture
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.images import ImageSet, Pixels

Step = Callable[[int, str], None]  # told how many more images are written, and of what
_SPAN = 64  # images written at once
JPEG = {'quality': 85, 'optimize': True}  # of ImageNet-C: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py


class GeneratedSet(CorruptedSet):
    """Clean images, corrupted on the fly: image i has noise of its own, drawn from (seed, i), however it is loaded.

    `clean` has the image size of the suite; `names` and `extra` are those of `choose_names`.
    """

    def __init__(
        self,
        clean: ImageSet,
        suite: str = 'cifar',
        names: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        extra: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(choose_names(names, extra), severities)
        self.clean, self.suite, self.seed = clean, suite, seed
        self.num_classes, self.class_names = clean.num_classes, clean.class_names
        if 'frost' in self.names:
            frost_picture(FROST_PICTURES[0], 1)  # that it is not installed is not found out after hours

    def __len__(self) -> int:
        return len(self.clean)

    def raw(self, name: str, severity: int, index: int) -> Labeled:
        """Return one image as the corruption leaves it."""
        pixels, label = self.clean[index]
        return corrupt(pixels, name, severity, self.suite, (self.seed, index)), label

    def image(self, name: str, severity: int, index: int) -> Labeled:
        """Return one image as the benchmark has it: those of ImageNet-C went through JPEG, which takes noise away."""
        pixels, label = self.raw(name, severity, index)
        return pixels if self.suite == 'cifar' else np.asarray(Image.open(_jpeg(pixels))), label

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
            'jpeg_quality': None if self.suite == 'cifar' else JPEG['quality'],
            'seed': self.seed,
            'fingerprint': clean['fingerprint'],
            'versions': environment()['versions'],
        }


def _jpeg(pixels: Pixels) -> BytesIO:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'JPEG', **JPEG)
    return file


def write_set(
    data: GeneratedSet, folder: Path, workers: int = 0, overwrite: bool = False, step: Step = lambda count, what: None
) -> int:
    """Write a whole set: arrays for the suite 'cifar', folders of JPEG files for 'imagenet'.

    What an earlier call of the same data has finished is kept, another set in the folder is an error.
    `overwrite` deletes a set that this package wrote there before. Returns the number of arrays, or of folders of one
    severity, that were written now.
    """
    arrays = data.suite == 'cifar'
    if arrays and data.severities != SEVERITIES:
        raise ValueError(
            f'Got severities {list(data.severities)}; the layout of CIFAR-C has all of {list(SEVERITIES)}.'
        )
    _claim(
        folder, data.describe() | {'storage': 'uint8 arrays' if arrays else 'JPEG, quality 85, optimized'}, overwrite
    )
    if arrays and not (folder / 'labels.npy').exists():
        labels = [data.clean[index][1] for index in range(len(data))]
        with atomic_write(folder / 'labels.npy') as file:
            np.save(file, np.tile(np.array(labels, np.int64), len(SEVERITIES)))
    written = 0
    for name in data.names:
        for severities in [data.severities] if arrays else [(severity,) for severity in data.severities]:
            path = folder / f'{name}.npy' if arrays else folder / name / str(severities[0])
            if path.exists():
                step(len(severities) * len(data), f'{name}: there already')
                continue
            if arrays:
                _write_array(data, name, path, workers, step)
            else:
                _write_severity(data, name, severities[0], path, workers, step)
            written += 1
    return written


def _write_array(data: GeneratedSet, name: str, path: Path, workers: int, step: Step) -> None:
    """Write one corruption as CIFAR-C has it: uint8 (S N, H, W, 3), the lowest severity first.

    From front to back, not through a memory map, which would turn a full disk into a crash.
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
    """Write `<name>/<severity>/<class>/<index>.JPEG`."""
    index = 0
    with atomic_folder(path) as folder:
        for images, labels in load_batches(partial(data.raw, name, severity), spans_of(len(data), _SPAN), workers):
            for pixels, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
                file = folder / f'{label:04d}' / f'{index:08d}.JPEG'
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(_jpeg(pixels).getvalue())
                index += 1
            step(len(images), f'{name} {severity}')


def _claim(folder: Path, made: dict[str, Any], overwrite: bool) -> None:
    """Write the description first, so that a part of a set is never taken for a published one."""
    description = folder / DESCRIPTION
    if overwrite and description.exists():
        for name in ('labels', *CORRUPTIONS, *EXTRA_CORRUPTIONS):  # what is written here, and nothing else
            (folder / f'{name}.npy').unlink(missing_ok=True)
            shutil.rmtree(folder / name, ignore_errors=True)
        description.unlink()
    if description.exists():
        old = read_json(description)
        changed = ', '.join(sorted(key for key in {*old, *made} if old.get(key) != made.get(key)))
        if changed:
            raise ValueError(f'{folder} has a set of another {changed}. Choose another --output, or pass --overwrite.')
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty and has no {DESCRIPTION} of this command. Choose another --output.')
    write_json(description, made)
