"""Binary pixel codes for timm: learnable (P2BE), one-hot and thermometer input stems.

Importing this package registers its models and optimizers with timm.
"""

from timm_p2be import models, optim  # noqa: F401  registers them with timm
from timm_p2be.encodings import PixelEmbedding
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.losses import smoothness_loss
from timm_p2be.robustness.attacks import LSPGA, attack_view
from timm_p2be.stem import EncodedConv2d, convert, find_embedding, fold

__version__ = '0.1.0'

__all__ = [
    'LSPGA',
    'EncodedConv2d',
    'PixelEmbedding',
    '__version__',
    'attack_view',
    'convert',
    'find_embedding',
    'fold',
    'lookup_conv2d',
    'smoothness_loss',
]
