"""Draw one image under every corruption and severity, as docs/corruptions_cifar.png and docs/corruptions_imagenet.jpg.

python benchmarks/contact_sheet.py IMAGE SUITE FILE     (an image of 32x32 pixels for cifar, of 224x224 for imagenet)
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt

NAMES = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
LABEL = 120  # width of the column of names
LINE = 20  # height of the line of severities
GAP = 4


def contact_sheet(image: Image.Image, suite: str) -> Image.Image:
    """Return a sheet with one row per corruption: its name, the clean RGB image and severities 1 to 5, seed 0."""
    scale = 2 if suite == 'cifar' else 0.5  # pixels stay visible as squares; or are averaged
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    side, columns = round(image.width * scale), (0, *SEVERITIES)
    pitch = side + GAP
    canvas = Image.new('RGB', (LABEL + len(columns) * pitch, LINE + len(NAMES) * pitch), color='white')
    draw = ImageDraw.Draw(canvas)
    for left, severity in zip(range(LABEL, canvas.width, pitch), columns, strict=True):
        draw.text((left, GAP), str(severity or 'clean'), fill=0)
        for top, name in zip(range(LINE, canvas.height, pitch), NAMES, strict=True):
            if severity == 0:
                draw.text((GAP, top + side // 2 - 6), name, fill=0)
            shown = Image.fromarray(corrupt(np.asarray(image), name, severity, suite)) if severity else image
            canvas.paste(shown.resize((side, side), resampling), (left, top))
    return canvas


if __name__ == '__main__':
    contact_sheet(Image.open(sys.argv[1]).convert('RGB'), sys.argv[2]).save(sys.argv[3])
