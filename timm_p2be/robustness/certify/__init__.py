"""Certificates: images whose class no change of at most eps levels a value can turn, by interval arithmetic.

Example:
    >>> import timm, torch
    >>> model = timm.create_model('wrn10_2_p2be', num_classes=10)
    >>> certified(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([3]), eps=0).shape
    torch.Size([1])
"""

from timm_p2be.robustness.certify.intervals import Bounds, IntervalNetwork
from timm_p2be.robustness.certify.margins import certified, margin_bounds
from timm_p2be.robustness.certify.stem_bounds import stem_bounds
from timm_p2be.robustness.certify.task import IBPTask

__all__ = ['Bounds', 'IBPTask', 'IntervalNetwork', 'certified', 'margin_bounds', 'stem_bounds']
