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
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    side, columns = round(len(image) * scale), (0, *SEVERITIES)
    pitch = side + _GAP
    canvas = Image.new('RGB', (_LABEL + len(columns) * pitch, _LINE + len(names) * pitch), color='white')
    draw = ImageDraw.Draw(canvas)
    for left, severity in zip(range(_LABEL, canvas.width, pitch), columns, strict=True):
        draw.text((left, _GAP), str(severity or 'clean'), fill=0)
        for top, name in zip(range(_LINE, canvas.height, pitch), names, strict=True):
            if severity == 0:
                draw.text((_GAP, top + side // 2 - 6), name, fill=0)
            pixels = corrupt(image, name, severity, suite, seed) if severity else image
            canvas.paste(Image.fromarray(pixels).resize((side, side), resampling), (left, top))
    return canvas
