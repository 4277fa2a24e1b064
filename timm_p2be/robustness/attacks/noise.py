"""Random noise, the attack that any other must beat."""

import torch
from torch import Generator, Tensor

from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.attempts import Attempts, check_count, shift, signs
from timm_p2be.robustness.attacks.windows import check_eps
from timm_p2be.robustness.pixel_model import PixelModel


class Noise:
    """Independent integer noise on every pixel value; every second draw is at the corners of the bound, +-eps.

    A model that this fools has no need of an attack, and one on which a gradient attack does worse masks its gradients.

    Args:
        model: attacked.
        eps: bound in levels, 0 to 255.
        draws: at least 1.
        name: in reports; None is 'noise'.

    Raises:
        ValueError: an argument out of range.
    """

    kind = 'noise'

    def __init__(self, model: PixelModel, eps: int = 8, draws: int = 10, name: str | None = None) -> None:
        check_eps(eps)
        check_count('draws', draws)
        self.model = model
        self.eps = eps
        self.draws = draws
        self.name = name or 'noise'

    def cost(self) -> Cost:
        """Return the clean image's query and one a draw."""
        return Cost(1 + self.draws, 0)

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the first draw that fools the model, else the one with the lowest margin; see `Attack`.

        Raises:
            ValueError: `levels` is not uint8 (B, 3, H, W).
        """
        generator = generator or torch.Generator().manual_seed(0)
        attempts = Attempts(self.model, levels, labels)
        for draw in range(self.draws):
            standing = attempts.standing()
            if len(standing) == 0:
                break
            shape = levels[standing].shape
            if draw % 2:
                noise = self.eps * signs(shape, generator)
            else:
                noise = torch.randint(-self.eps, self.eps + 1, shape, generator=generator, dtype=torch.int16)
            attempts.offer(standing, shift(levels[standing], noise.to(levels.device)))
        return attempts.levels
