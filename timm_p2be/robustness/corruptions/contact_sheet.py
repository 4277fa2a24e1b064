"""A picture of one image under every corruption and severity, to look at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt

_LABEL = 120  # width of the column of names
_LINE = 20  # height of the line of severities
_GAP = 4


def contact_sheet(
    image: NDArray[np.uint8],
    suite: str = 'cifar',
    seed: int | Sequence[int] = 0,
    names: Sequence[str] = (*CORRUPTIONS, *EXTRA_CORRUPTIONS),
    scale: float | None = None,
) -> Image.Image:
    """Return a sheet, an RGB image, with one row per corruption: its name, the clean image and severities 1 to 5.

    Args:
        image: uint8 levels (H, W, 3) of the suite's size, see `corrupt`.
        suite: 'cifar' or 'imagenet'.
        seed: as for `corrupt`; every row and severity has random numbers of its own anyway.
        names: corruptions, from top to bottom.
        scale: size of a picture relative to the image; by default 2 for 'cifar' (pixels stay visible as squares), else
            1/2 (by averaging).
    """
    if not names:
        raise ValueError(f'Got no names of corruptions; choose from {[*CORRUPTIONS, *EXTRA_CORRUPTIONS]}.')
    scale = scale if scale is not None else 2 if suite == 'cifar' else 0.5
    if not scale > 0:
        raise ValueError(f'Got scale={scale}; it must be positive, 1 shows the images at their own size.')
    rows = [[image, *(corrupt(image, name, severity, suite, seed) for severity in SEVERITIES)] for name in names]
    width, height = (max(round(side * scale), 1) for side in image.shape[1::-1])
    canvas = Image.new(
        'RGB', (_LABEL + len(rows[0]) * (width + _GAP), _LINE + len(rows) * (height + _GAP)), color='white'
    )
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(['clean', *map(str, SEVERITIES)]):
        draw.text((_LABEL + column * (width + _GAP), _GAP), title, fill=0)
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    for row, (name, pictures) in enumerate(zip(names, rows, strict=True)):
        top = _LINE + row * (height + _GAP)
        draw.text((_GAP, top + height // 2 - 6), name, fill=0)
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(pixels).resize((width, height), resampling)
            canvas.paste(picture, (_LABEL + column * (width + _GAP), top))
    return canvas
