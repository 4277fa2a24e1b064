"""Robustness of any timm model: `corruptions`, `attacks`, and `evaluation`, the benchmarks made of them."""
