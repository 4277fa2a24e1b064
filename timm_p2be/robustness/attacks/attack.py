"""What attacks have in common: from uint8 images to uint8 images, within a bound, judged by the margin."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.pixel_model import PixelModel, as_pixel_model


class Cost(NamedTuple):
    """Most that one image can cost: calls of the model without and with a backward pass."""

    forwards: int
    backwards: int


class Attack(ABC):
    """An attack on one model with one bound; a new one is a subclass here and a line in `evaluation/attack_suite.py`.

    Args:
        model: timm classifier, encoded or not, which the attack sees in evaluation mode, or a `PixelModel`.
        eps: largest change of a pixel value, in levels, 0 to 255.
        name: in reports, unique in a benchmark.
    """

    kind: str  # 'noise', 'transfer', 'one-step', 'white-box' or 'score'; the automatic checks compare kinds

    def __init__(self, model: nn.Module, eps: int, name: str) -> None:
        check_eps(eps)
        self.model = as_pixel_model(model)
        self.eps = eps
        self.name = name

    @abstractmethod
    def cost(self) -> Cost:
        """Return the budget of one image."""

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return an attempt for each image, at most `eps` levels from `levels`, both uint8 (B, 3, H, W).

        `generator`, on the CPU, is the source of all randomness; None starts one from seed 0.
        """
        check_images(levels)
        check_labels(self.model, labels)
        return self._attack(levels, labels, generator or torch.Generator().manual_seed(0))

    @abstractmethod
    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Return the attempts at images that have been checked."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the label leads, (B,): its logit minus the largest other one; negative where argmax is wrong.

    A tie that argmax decides against the label counts as the smallest negative number.
    """
    own = labels.unsqueeze(1)
    lead = logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -math.inf).amax(dim=1)
    lost_tie = (lead == 0) & (logits.argmax(dim=1) != labels)
    return lead - lost_tie.to(lead.dtype) * torch.finfo(lead.dtype).tiny


def check_images(levels: Tensor) -> None:
    if levels.dtype != torch.uint8 or levels.ndim != 4 or levels.shape[1] != 3:
        raise ValueError(
            f'Got images of dtype {levels.dtype} and shape {list(levels.shape)}; attacks and certificates take uint8 '
            'levels (B, 3, H, W). timm_p2be.encodings.pixel_levels converts images in [0, 1].'
        )


def check_labels(model: PixelModel, labels: Tensor) -> None:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if not 0 <= low <= high < model.num_classes:
        raise ValueError(
            f'The data has labels from {low} to {high}, {model.name} has {model.num_classes} classes (0 to '
            f'{model.num_classes - 1}). Choose a model and data of the same classes, or pass --class-map.'
        )


def check_eps(eps: int) -> None:
    if not isinstance(eps, int) or isinstance(eps, bool) or not 0 <= eps <= 255:
        raise ValueError(
            f'Got eps={eps!r}; it is the largest change of a pixel value in levels, an integer from 0 to 255. '
            'The usual bound 8/255 is eps=8.'
        )


def check_counts(least: int = 1, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f'Got {name}={value!r}; it must be an integer of at least {least}.')
