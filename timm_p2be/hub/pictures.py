"""Pictures of a table of codes: the bits and similarities of the paper's Fig. 2, and distance against |i - j|."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from timm_p2be.encodings.statistics import code_statistics

_LEVEL = 3  # pixels of a level
_BITS_WIDTH, _WIDEST_BIT = 576, 96  # short codes are stretched towards the first
_CURVE_WIDTH = 840
_TEXT = 28  # legible when the picture is printed as wide as a page
_TICK = 10
_SMOOTH = 4  # the curve is drawn this much larger and averaged, for PIL's own lines have steps
_GRAY, _BLUE = (140, 140, 140), (0, 84, 159)

_Box = tuple[int, int, int, int]  # left, top, right, bottom of a panel; right and bottom lie outside
_Ticks = Sequence[tuple[str, float]]  # label -> place, 0 (left or bottom) to 1


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
    """Return a picture of a table in three panels, each with its axes.

    Left the bits (level down, bit across, white is 1); in the middle `code_similarity` (black is 0, white is 1); right
    the mean Hamming distance of levels i and j against |i - j|, with a dashed line at M / 2, which random codes have,
    unless the table's distances stay far below it.

    Args:
        codes: (256, M) tensor of 0 and 1.
        title: text above the picture.

    Returns:
        RGB image on white.
    """
    levels, num_bits = codes.shape
    bits = _grays(codes.detach().float().cpu().numpy(), max(1, min(_WIDEST_BIT, _BITS_WIDTH // num_bits)))
    similarity = _grays(code_similarity(codes).numpy(), _LEVEL)
    bar = _grays(np.linspace(1, 0, levels)[:, None], _TEXT)
    margin, top = 5 * _TEXT, 5 * _TEXT
    boxes: list[_Box] = []
    left = margin
    # a panel's numbers and label lie at its left, the bar's at its right
    widths = (bits.width, similarity.width, bar.width, _CURVE_WIDTH)
    for width, space in zip(widths, (margin, _TEXT, 8 * _TEXT, 2 * _TEXT), strict=True):
        boxes.append((left, top, left + width, top + bits.height))
        left += width + space
    canvas = Image.new('RGB', (left, top + bits.height + int(3.5 * _TEXT)), color='white')
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, _TEXT), title, fill=0, font=_font(1.15))

    level_ticks = [(str(level), (level + 0.5) / levels) for level in _round_values(levels - 1, 64)]
    downwards = [(label, 1 - place) for label, place in level_ticks]
    step = next((step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256) if num_bits <= 8 * step), num_bits // 8)
    bit_ticks = [(str(bit), (bit + 0.5) / num_bits) for bit in _round_values(num_bits - 1, step)]
    for image, box in zip((bits, similarity, bar), boxes, strict=False):
        canvas.paste(image, box[:2])
    _frame(canvas, boxes[0], 'codes', 'bit', 'level', bit_ticks, downwards)
    _frame(canvas, boxes[1], 'cosine similarity', 'level', 'level', level_ticks, downwards)
    _frame(canvas, boxes[2], '', '', '', [], [])
    for value in (0, 0.25, 0.5, 0.75, 1):
        place = boxes[2][3] - 1 - value * (bits.height - 1)
        draw.line((boxes[2][2], place, boxes[2][2] + _TICK, place), fill=0, width=2)
        draw.text((boxes[2][2] + 1.6 * _TICK, place), f'{value:g}', fill=0, font=_font(), anchor='lm')
    _draw_distances(canvas, boxes[3], codes)
    return canvas


def _draw_distances(canvas: Image.Image, box: _Box, codes: Tensor) -> None:
    """Draw the curve of the mean Hamming distance, its axes, and the dashed line of random codes."""
    levels, num_bits = codes.shape
    distances = code_statistics(codes).distances
    random = num_bits / 2
    largest = max(distances) or 1
    with_random = random < 2 * largest
    height = 1.08 * max(largest, random if with_random else 0)
    wide, high = box[2] - box[0], box[3] - box[1]

    def at(apart: float, distance: float) -> tuple[float, float]:
        return apart / (levels - 1) * wide * _SMOOTH, (1 - distance / height) * high * _SMOOTH

    panel = Image.new('RGB', (wide * _SMOOTH, high * _SMOOTH), color='white')
    draw = ImageDraw.Draw(panel)
    if with_random:
        for dash in range(0, levels - 1, 6):
            draw.line((at(dash, random), at(dash + 3, random)), fill=_GRAY, width=2 * _SMOOTH)
    points = [at(apart, distance) for apart, distance in enumerate(distances)]
    draw.line(points, fill=_BLUE, width=5 * _SMOOTH, joint='curve')
    canvas.paste(panel.resize((wide, high), Image.Resampling.BOX), box[:2])
    if with_random:
        label = (box[2] - _TEXT // 2, box[1] + at(0, random)[1] / _SMOOTH + _TEXT * 0.3)
        ImageDraw.Draw(canvas).text(label, 'random codes: M / 2', fill=_GRAY, font=_font(), anchor='ra')
    step = _round_step(height)
    vertical = [(f'{step * tick:g}', step * tick / height) for tick in range(int(height / step) + 1)]
    across = [(str(apart), apart / (levels - 1)) for apart in _round_values(levels - 1, 64)]
    _frame(canvas, box, 'mean Hamming distance of levels i and j', '|i - j|', 'bits', across, vertical)


def _grays(values: NDArray[np.floating], width: int) -> Image.Image:
    """Return values in [0, 1] as gray pixels, `width` wide and _LEVEL high."""
    pixels = (values * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.repeat(_LEVEL, axis=0).repeat(width, axis=1))


def _frame(canvas: Image.Image, box: _Box, title: str, below: str, beside: str, across: _Ticks, up: _Ticks) -> None:
    """Draw a panel's border, title, tick marks with their numbers, and the labels of its axes."""
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box
    draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=0, width=2)
    draw.text(((left + right) / 2, top - _TEXT * 0.6), title, fill=0, font=_font(), anchor='ms')
    for label, place in across:
        x = left + place * (right - left)
        draw.line((x, bottom, x, bottom + _TICK), fill=0, width=2)
        draw.text((x, bottom + 1.5 * _TICK), label, fill=0, font=_font(), anchor='ma')
    draw.text(((left + right) / 2, bottom + 2 * _TEXT), below, fill=0, font=_font(), anchor='ma')
    for label, place in up:
        y = bottom - place * (bottom - top)
        draw.line((left - _TICK, y, left, y), fill=0, width=2)
        draw.text((left - 1.5 * _TICK, y), label, fill=0, font=_font(), anchor='rm')
    if beside:
        upright = Image.new('L', (math.ceil(_font().getlength(beside)), int(1.4 * _TEXT)), color=255)
        ImageDraw.Draw(upright).text((0, 0), beside, fill=0, font=_font())
        upright = upright.rotate(90, expand=True)
        canvas.paste(upright, (left - int(3.8 * _TEXT), (top + bottom - upright.height) // 2))


def _font(size: float = 1) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _TEXT)


def _round_values(last: int, step: int) -> list[int]:
    """Return 0, step, 2 step, ... and `last`, without those that would touch its label."""
    return [*(value for value in range(0, last, step) if last - value > 0.6 * step), last]


def _round_step(height: float) -> float:
    """Return the distance of about five marks up to `height`: 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(height / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 6 >= height)
