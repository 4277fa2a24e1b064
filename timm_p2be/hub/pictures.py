"""Pictures of a table of codes: those of the paper's Fig. 2, and those of cards."""

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_p2be.encodings.codes import thermometer_codes
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.extras import require

_DPI = 150


def draw_pictures(folder: Path, codes: Tensor | None, errors: Mapping[str, float]) -> list[str]:
    """Write the pictures of a card into `folder` and return their names.

    Args:
        codes: (256, M) tensor of 0 and 1, drawn as `codes.png`; None leaves that out.
        errors: corruption -> error in percent, drawn as `corruptions.png` if matplotlib is installed; may be empty.
    """
    names = []
    if codes is not None:
        codes_image(codes).save(folder / 'codes.png')
        names.append('codes.png')
    if errors and find_spec('matplotlib'):
        figure = require('matplotlib.figure', extra='robustness').Figure(figsize=(8, 4), layout='constrained')
        axes = figure.subplots()
        axes.bar([*errors], [*errors.values()])
        axes.set(ylabel='error, %, mean over severities', ylim=(0, 100))
        axes.tick_params('x', rotation=60)
        figure.savefig(folder / 'corruptions.png', dpi=_DPI, metadata={'Software': None})
        names.append('corruptions.png')
    return names


def codes_image(codes: Tensor) -> Image.Image:
    """Return a picture of a table: level to the right, bit down, black 0 and white 1.

    Where the thermometer code has another bit, 0 is blue and 1 is orange.
    """
    bits = codes.detach().cpu().bool()
    unlike = bits != thermometer_codes(bits.shape[1]).bool()
    palette = np.array([(24, 24, 24), (255, 255, 255), (40, 110, 220), (245, 140, 20)], np.uint8)
    pixels = palette[(bits + 2 * unlike.int()).T.numpy()]
    size = 3 * pixels.shape[1], max(3, 192 // len(pixels)) * len(pixels)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def codes_figure(codes: Tensor, title: str = '') -> Any:
    """Return a matplotlib Figure of a table in three panels.

    Left the bits (level down, bit across, white is 1); in the middle the cosine similarities of all pairs of codes,
    about 0.5 for random ones (black is 0, white is 1; docs/protocol.md); right the mean Hamming distance of levels i
    and j against |i - j|, with a dashed line at M / 2, which random codes have, unless the distances stay far below.
    """
    codes = codes.detach().float().cpu()
    unit = torch.nn.functional.normalize(codes, dim=1)
    levels, num_bits = codes.shape
    distances = code_statistics(codes).distances
    figures = require('matplotlib.figure', extra='robustness')
    figure = figures.Figure(figsize=(15, 5), dpi=_DPI, layout='constrained')
    figure.suptitle(title, parse_math=False)  # a title may hold the name somebody gave a repository
    bits, similarity, curve = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.4))
    gray = {'cmap': 'gray', 'vmin': 0, 'vmax': 1, 'interpolation': 'nearest'}
    bits.imshow(codes.numpy(), aspect='auto', **gray)
    bits.set(title='codes', xlabel='bit', ylabel='level')
    shown = similarity.imshow((unit @ unit.T).numpy(), **gray)
    similarity.set(title='cosine similarity', xlabel='level', ylabel='level')
    figure.colorbar(shown, ax=similarity)
    curve.plot(distances)
    if num_bits / 2 < 2 * max(distances):
        curve.axhline(num_bits / 2, color='gray', linestyle='--', label='random codes: M / 2')
        curve.legend(loc='lower right')
    curve.set(title='mean Hamming distance of levels i and j', xlabel='|i - j|', ylabel='bits', xlim=(0, levels - 1))
    curve.set_ylim(bottom=0)
    return figure


def codes_picture(codes: Tensor, title: str = '') -> Image.Image:
    """Return `codes_figure` as an RGB image."""
    buffer = io.BytesIO()
    codes_figure(codes, title).savefig(buffer, format='png')
    return Image.open(buffer).convert('RGB')
