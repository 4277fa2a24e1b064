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
) -> Image.Image:
    """Return a sheet, an RGB image, with one row per corruption: its name, the clean image and severities 1 to 5.

    See `corrupt` for the arguments; `names` are corruptions, from top to bottom.
    """
    scale = 2 if suite == 'cifar' else 0.5  # pixels stay visible as squares; or are averaged
    rows = [[image, *(corrupt(image, name, severity, suite, seed) for severity in SEVERITIES)] for name in names]
    width, height = (round(side * scale) for side in image.shape[1::-1])
    columns = 1 + len(SEVERITIES)
    canvas = Image.new('RGB', (_LABEL + columns * (width + _GAP), _LINE + len(rows) * (height + _GAP)), color='white')
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
