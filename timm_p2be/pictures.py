"""Pictures of a table of codes, as the paper's Fig. 2 shows them."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

_MARGIN = 24
_SCALE = 2


def code_similarity(codes: Tensor) -> Tensor:
    """Return the cosine similarities of all pairs of codes.

    Codes are not negative, so the values lie in [0, 1] and unrelated random codes have about 0.5. Fig. 2 of the paper
    shows this matrix (docs/protocol.md).

    Args:
        codes: (256, M) tensor of 0 and 1.

    Returns:
        (256, 256) float32 tensor; rows and columns of a code without any 1 are 0.

    Example:
        >>> code_similarity(torch.eye(256))[3, :5].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    unit = torch.nn.functional.normalize(codes.detach().float().cpu(), dim=1)
    return unit @ unit.T


def codes_picture(codes: Tensor, title: str = '') -> Image.Image:
    """Return a picture of a table: left its bits (level down, bit across, white is 1), right `code_similarity`.

    Args:
        codes: (256, M) tensor of 0 and 1.
        title: text above the picture.

    Returns:
        Greyscale image; black is similarity 0, white is 1.
    """
    bits = codes.detach().float().cpu().numpy()
    panels = [np.kron(panel, np.ones((_SCALE, _SCALE))) for panel in (bits, code_similarity(codes).numpy())]
    images = [Image.fromarray((panel * 255).round().astype(np.uint8)) for panel in panels]
    width = sum(image.width for image in images) + 3 * _MARGIN
    canvas = Image.new('L', (width, images[0].height + 3 * _MARGIN), color=255)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN // 4), title, fill=0)
    left = _MARGIN
    for image, label in zip(
        images, ('codes: level 0..255 down, bit across', 'cosine similarity of the codes'), strict=True
    ):
        # narrow tables leave no room for their label
        if image.width > len(label) * 5:
            draw.text((left, _MARGIN), label, fill=0)
        canvas.paste(image, (left, 2 * _MARGIN))
        draw.rectangle((left - 1, 2 * _MARGIN - 1, left + image.width, 2 * _MARGIN + image.height), outline=128)
        left += image.width + _MARGIN
    return canvas
