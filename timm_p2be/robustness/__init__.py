"""Robustness of any model on [0, 1] images: corruptions, benchmarks and attacks."""

from timm_p2be.robustness.corruptions import corrupt

__all__ = ['corrupt']
