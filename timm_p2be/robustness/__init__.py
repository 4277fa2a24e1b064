"""Robustness of any timm model: corruptions, attacks, and the benchmarks made of them.

`timm_p2be.robustness.corruptions` has the corruptions; it is not imported here, since its libraries take seconds.
"""

from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.surrogates import attack_view

__all__ = ['LSPGA', 'attack_view']
