"""Training data: AugMix, the transforms around it, and the quickstart's image folder (`timm_p2be.data.digits`)."""

from timm_p2be.data.augmix import AugMix
from timm_p2be.data.transforms import MultiView, zero_padded_crop

__all__ = ['AugMix', 'MultiView', 'zero_padded_crop']
