"""The quickstart's data set: scikit-learn's handwritten digits as an ordinary image folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from timm_p2be.extras import require
from timm_p2be.files import atomic_write

_SIDE = 32
_VALIDATION_SHARE = 0.2


def write_digits(folder: str | Path) -> Path:
    """Write 1,797 handwritten digits as 32x32 RGB PNG files, in folder/{train,validation}/{0..9}/NNNN.png.

    The images are those of `sklearn.datasets.load_digits` (8x8, values 0..16), scaled to 0..255 and enlarged by PIL's
    bicubic filter; a fifth of each class is for validation. Files appear under their names when they are
    whole: an interrupted call can be repeated, and several processes may call this at once.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     print(len(list(write_digits(folder).glob('*/*/*.png'))))
        1797
    """
    folder, generator = Path(folder), np.random.default_rng(0)
    images, labels = require('sklearn.datasets', extra='robustness').load_digits(return_X_y=True)
    validation: set[int] = set()
    for label in range(10):
        members = generator.permutation(np.flatnonzero(labels == label)).tolist()
        validation.update(members[: round(_VALIDATION_SHARE * len(members))])
    splits = ['validation' if index in validation else 'train' for index in range(len(labels))]
    names = [f'{split}/{labels[index]}/{index:04}.png' for index, split in enumerate(splits)]
    for name, values in zip(names, images, strict=True):
        if not (folder / name).is_file():
            levels = np.floor(values.reshape(8, 8) * 255 / 16 + 0.5).astype(np.uint8)
            image = Image.fromarray(levels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert('RGB')
            with atomic_write(folder / name) as file:
                image.save(file, format='PNG')
    return folder
