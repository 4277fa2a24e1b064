"""One attack on one batch: its images are checked, then judged by the untouched model."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.pixel_model import PixelModel

Bits = NDArray[np.bool_]


class BrokenAttackError(AssertionError):
    """An attack broke its contract: a bug in the attack, not a property of the model."""


def seeded(*parts: str | int) -> Generator:
    """Return a CPU generator that depends on `parts` alone, so that no result depends on what ran before it."""
    digest = hashlib.sha256('\0'.join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], 'big') >> 1)


@torch.no_grad()
def logits(model: PixelModel, levels: Tensor, amp_dtype: torch.dtype | None = None) -> Tensor:
    """Return the finite float32 logits (B, K), on the CPU, of uint8 images (B, 3, H, W); `amp_dtype` of autocast."""
    model.eval()
    device = model.device
    with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
        found = model(levels.to(device, non_blocking=True)).float().cpu()
    if not bool(found.isfinite().all()):
        raise ValueError(
            f'{model.name} gives logits that are not finite; nothing can be said of it. Its training diverged, its '
            'file is damaged, or --amp-dtype float16 overflows.'
        )
    return found


def is_correct(model: PixelModel, levels: Tensor, labels: Tensor) -> Bits:
    """Return whether the model, in evaluation mode, gives each uint8 image (B, 3, H, W) its label: (B,) bool."""
    return (logits(model, levels).argmax(1) == labels.cpu()).numpy()


def attack_batch(
    model: PixelModel, attack: Attack, levels: Tensor, labels: Tensor, eps: int, generator: Generator
) -> tuple[Tensor, Bits]:
    """Attack uint8 images (B, 3, H, W) and judge the result by nothing but the images.

    Returns:
        The uint8 attempts (B, 3, H, W) on the CPU, and (B,) bool: the model gets the attempt wrong.
    """
    model.eval()
    attempt = attack(levels.to(model.device), labels.to(model.device), generator)
    if not isinstance(attempt, Tensor) or attempt.dtype != torch.uint8 or attempt.shape != levels.shape:
        got = f'{attempt.dtype} {tuple(attempt.shape)}' if isinstance(attempt, Tensor) else type(attempt).__name__
        raise BrokenAttackError(f'Attack {attack.name!r} returned {got}; its contract is uint8 {tuple(levels.shape)}.')
    change = int((attempt.cpu().int() - levels.cpu().int()).abs().max())
    if change > eps:
        raise BrokenAttackError(f'Attack {attack.name!r} changed a pixel by {change} levels; its bound is {eps}.')
    return attempt.cpu(), ~is_correct(model, attempt, labels)
