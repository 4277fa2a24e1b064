"""The stem: a first convolution that reads pixel codes, put into a model, found in it, and folded for inference."""

from timm_p2be.stem.convert import UnsupportedStemError, convert
from timm_p2be.stem.encoded_conv import EncodedConv2d, encoded_stem, find_embedding, learned_embedding
from timm_p2be.stem.fold import fold

__all__ = [
    'EncodedConv2d',
    'UnsupportedStemError',
    'convert',
    'encoded_stem',
    'find_embedding',
    'fold',
    'learned_embedding',
]
