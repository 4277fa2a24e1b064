"""Pictures of a table of codes: the bits and similarities of the paper's Fig. 2, and distance against |i - j|."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.extras import require

_DPI = 150


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
