"""Pictures of a table of codes: the bits and similarities of the paper's Fig. 2, and distance against |i - j|."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150


def code_similarity(codes: Tensor) -> Tensor:
    """Return the cosine similarities of all pairs of codes.

    Codes are not negative, so the values lie in [0, 1] and unrelated random codes have about 0.5. Fig. 2 of the paper
    shows this matrix (docs/protocol.md).

    Returns:
        (256, 256) float32 tensor; rows and columns of a code without any 1 are 0.

    Example:
        >>> code_similarity(torch.eye(256))[3, :5].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    unit = torch.nn.functional.normalize(codes.detach().float().cpu(), dim=1)
    return unit @ unit.T


def codes_figure(codes: Tensor, title: str = '') -> 'Figure':
    """Return a figure of a table in three panels.

    Left the bits (level down, bit across, white is 1); in the middle `code_similarity` (black is 0, white is 1); right
    the mean Hamming distance of levels i and j against |i - j|, with a dashed line at M / 2, which random codes have,
    unless the table's distances stay far below it.

    Args:
        codes: (256, M) tensor of 0 and 1.
        title: text above the picture.

    Raises:
        ValueError: matplotlib is missing.
    """
    figures = require('matplotlib.figure', extra='robustness')
    levels, num_bits = codes.shape
    distances = code_statistics(codes).distances
    figure: Figure = figures.Figure(figsize=(15, 5), dpi=_DPI, layout='constrained')
    figure.suptitle(title, parse_math=False)  # a title may hold the name somebody gave a repository
    bits, similarity, curve = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.4))
    gray = {'cmap': 'gray', 'vmin': 0, 'vmax': 1, 'interpolation': 'nearest'}
    bits.imshow(codes.detach().float().cpu().numpy(), aspect='auto', **gray)
    bits.set(title='codes', xlabel='bit', ylabel='level')
    shown = similarity.imshow(code_similarity(codes).numpy(), **gray)
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
    figure = codes_figure(codes, title)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
