"""Pixel levels and their binary codes: fixed tables, and the learned one, `PixelEmbedding`."""

from timm_p2be.encodings.codes import (
    ENCODINGS,
    INITS,
    LEVELS,
    binarize,
    onehot_codes,
    pixel_levels,
    thermometer_codes,
    warn_if_not_pixels,
)
from timm_p2be.encodings.embedding import EmbeddingParameter, PixelEmbedding

__all__ = [
    'ENCODINGS',
    'INITS',
    'LEVELS',
    'EmbeddingParameter',
    'PixelEmbedding',
    'binarize',
    'onehot_codes',
    'pixel_levels',
    'thermometer_codes',
    'warn_if_not_pixels',
]
