"""Random noise, the attack that any other must beat."""

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost, check_counts
from timm_p2be.robustness.attacks.attempts import Attempts, shift, signs


class Noise(Attack):
    """Independent integer noise on every pixel value; every second draw is at the corners of the bound, +-eps.

    A model that this fools has no need of an attack, and one on which a gradient attack does worse masks its gradients.
    """

    kind = 'noise'

    def __init__(self, model: nn.Module, eps: int = 8, draws: int = 10, name: str = 'noise') -> None:
        super().__init__(model, eps, name)
        check_counts(draws=draws)
        self.draws = draws

    def cost(self) -> Cost:
        return Cost(1 + self.draws, 0)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels)
        for draw, standing in attempts.rounds(self.draws):
            shape = levels[standing].shape
            if draw % 2:
                noise = self.eps * signs(shape, generator)
            else:
                noise = torch.randint(-self.eps, self.eps + 1, shape, generator=generator, dtype=torch.int16)
            attempts.offer(standing, shift(levels[standing], noise.to(levels.device)))
        return attempts.levels
