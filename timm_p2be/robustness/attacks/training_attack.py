"""The attack on a network in training, one climb from one random start for every batch."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks.attack import check_labels
from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.pixel_model import PixelModel, tied_copy


class TrainingAttack:
    """LS-PGA on a network with an encoded stem, PGD of as many steps on one of pixel values.

    The network is attacked in evaluation mode, as it is at that moment: a copy that shares its weights and statistics
    but not its modes, gradients or hooks. Args: see `timm_p2be.task.ConTrainTask`.

    Attributes:
        batches: attacked so far; with seed and process it determines the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: int = 8,
        steps: int = 7,
        step_size: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if eps == 0:
            raise ValueError('Got eps=0, which leaves images as they are; allowed are 1 to 255, usual is 8 (8/255).')
        self.eps, self.steps, self.step_size, self.seed = eps, steps, step_size, seed
        self.batches = 0
        self._normalization = mean, std
        self._attack = self._aim(model)

    def _aim(self, model: nn.Module) -> LSPGA | PGD:
        copy = PixelModel(tied_copy(model), *self._normalization)
        if copy.encoding is None:
            return PGD(copy, self.eps, steps=self.steps, step_size=self.step_size)
        return LSPGA(copy, self.eps, self.steps, 1.0 if self.step_size is None else self.step_size)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return an adversarial version of each image, (B, 3, H, W), in the normalization and dtype of `images`."""
        if _tensors(model) != _tensors(self._attack.model.model):  # it has been moved to another device, for example
            self._attack = self._aim(model)
        network = self._attack.model
        if self.batches == 0:  # not all: it waits for the device
            check_labels(network, labels)
        generator = self._noise(images.device)
        self.batches += 1
        if network.encoding is None:
            levels = self._attack.ascend(network.levels(images), labels, generator)
            return network.normalize(levels / 255).to(images.dtype)
        levels = self._attack.ascend(pixel_levels(images), labels, generator)
        return levels if images.dtype == torch.uint8 else (levels / 255).to(images.dtype)

    def _noise(self, device: torch.device) -> Generator:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        state = np.random.SeedSequence([self.seed, rank, self.batches]).generate_state(1)
        return torch.Generator(device).manual_seed(int(state[0]))

    def __str__(self) -> str:
        return f'{self._attack.name}, eps={self.eps}, steps={self.steps}, step_size={self._attack.step_size}'


def _tensors(module: nn.Module) -> list[int]:
    """Return which tensors a network computes with."""
    return [id(tensor) for tensor in chain(module.parameters(), module.buffers())]
