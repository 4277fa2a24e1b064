"""The quickstart's data set: scikit-learn's handwritten digits as an ordinary image folder."""

import io
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

_SIDE = 32
_VALIDATION_SHARE = 0.2
_MARKER = 'digits.json'  # written last: its presence says that the folder is complete


def write_digits(folder: str | Path, seed: int = 0) -> Path:
    """Write 1,797 handwritten digits as 32x32 RGB PNG files, in folder/{train,validation}/{0..9}/NNNN.png.

    The images are those of `sklearn.datasets.load_digits` (8x8, values 0..16), scaled to 0..255 and enlarged by PIL's
    bicubic filter; NNNN is the index there. A fifth of each class is for validation. A complete folder is left as it
    is, a partial one is completed. Each file appears under its name only when it is whole, and a file digits.json
    comes last, so an interrupted call can be repeated and several processes may call this at once.

    Args:
        folder: where to write; created if missing. Read it with timm's `--data-dir folder`.
        seed: decides which images are for validation.

    Returns:
        `folder` as a Path.

    Raises:
        ValueError: the folder holds other PNG files, or digits split by another seed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     print(len(list(write_digits(folder).glob('*/*/*.png'))))
        1797
    """
    folder = Path(folder)
    images, labels = load_digits(return_X_y=True)
    names = _split(labels, seed)
    present = {path.relative_to(folder).as_posix() for path in folder.glob('*/*/*.png')}
    marker = folder / _MARKER
    description = {'source': 'sklearn.datasets.load_digits', 'seed': seed, 'images': len(names)}
    if unknown := present - set(names):
        raise ValueError(
            f'Got {folder}, which holds {len(unknown)} images that are not digits split by seed {seed} '
            f'(for instance {min(unknown)}). Choose an empty or a new folder.'
        )
    content = (json.dumps(description, indent=2) + '\n').encode()
    complete = marker.is_file() and marker.read_bytes() == content
    for index, name in enumerate(names):
        if not (complete and name in present):
            _write(folder / name, _enlarge(images[index]))
    if not complete:
        _replace(marker, content)
    return folder


def _split(labels: NDArray[np.int64], seed: int) -> list[str]:
    """Return the relative file name of every image; a fixed share of each class, drawn by `seed`, is validation."""
    generator = np.random.default_rng(seed)
    validation: set[int] = set()
    for label in range(10):
        members = generator.permutation(np.flatnonzero(labels == label)).tolist()
        validation.update(members[: round(_VALIDATION_SHARE * len(members))])
    splits = ['validation' if index in validation else 'train' for index in range(len(labels))]
    return [f'{split}/{label}/{index:04d}.png' for index, (split, label) in enumerate(zip(splits, labels, strict=True))]


def _enlarge(values: NDArray[np.float64]) -> Image.Image:
    """Return 64 values in 0..16 as a 32x32 RGB image."""
    levels = np.floor(values.reshape(8, 8) * 255 / 16 + 0.5).astype(np.uint8)
    return Image.fromarray(levels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert('RGB')


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format='PNG')
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.write_bytes(content)
    partial.replace(path)
