"""Attacks on images of pixel levels, each one file; `attack.py` says what they have in common."""

from timm_p2be.robustness.attacks.apgd import APGD
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.coordinate import CoordinateSearch
from timm_p2be.robustness.attacks.dga import DGA
from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.noise import Noise
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.attacks.square import Square
from timm_p2be.robustness.attacks.surrogates import attack_view
from timm_p2be.robustness.attacks.transfer import Transfer

__all__ = ['APGD', 'DGA', 'LSPGA', 'PGD', 'Attack', 'CoordinateSearch', 'Noise', 'Square', 'Transfer', 'attack_view']
