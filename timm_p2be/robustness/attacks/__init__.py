"""Attacks on images of pixel levels, each one file; `attack.py` says what they have in common.

Example:
    >>> import timm, torch
    >>> model, other = (timm.create_model(name, num_classes=10) for name in ('wrn10_2_p2be', 'resnet10t'))
    >>> images, labels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([3, 1])
    >>> attacks = [Noise(model), DGA(model), LSPGA(model), PGD(model, steps=4), APGD(model, steps=4)]
    >>> attacks += [Square(model, queries=9), Transfer(model, PGD(other))]
    >>> {int((attack(images, labels).int() - images.int()).abs().max()) for attack in attacks} <= set(range(9))
    True
"""

from timm_p2be.robustness.attacks.apgd import APGD
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.dga import DGA
from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.noise import Noise
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.attacks.square import Square
from timm_p2be.robustness.attacks.surrogates import attack_view, round_toward
from timm_p2be.robustness.attacks.transfer import Transfer

__all__ = [
    'APGD',
    'DGA',
    'LSPGA',
    'PGD',
    'Attack',
    'Noise',
    'Square',
    'Transfer',
    'attack_view',
    'round_toward',
]
