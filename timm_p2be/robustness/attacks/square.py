"""Square Attack (Andriushchenko et al., ECCV 2020) on pixel levels, as in fra31/auto-attack, autoattack/square.py."""

import math
from bisect import bisect_left

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost, check_counts
from timm_p2be.robustness.attacks.attempts import Attempts, shift, signs

SHARE = 0.8  # of the image that the first squares cover
# after these many of 10,000 queries the area of the squares halves
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(Attack):
    """Random search over squares of +-eps: a square with a random sign per color is kept if the margin falls.

    Starts from vertical stripes of +-eps, one pixel wide. Every image has its own squares, whose area shrinks with the
    share of the queries that is spent, and drops out when it falls. All attempts lie at the corners of the bound.

    Arguments are those of `Attack`, and:

    Args:
        queries: most an image can cost, the clean one included; at least 2.
    """

    kind = 'score'

    def __init__(self, model: nn.Module, eps: int = 8, queries: int = 5000, name: str = 'square') -> None:
        super().__init__(model, eps, name)
        check_counts(least=2, queries=queries)
        self.queries = queries

    def cost(self) -> Cost:
        return Cost(self.queries, 0)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels)
        height, width = levels.shape[2:]
        squares = self.queries - 2
        standing = attempts.standing()
        stripes = self.eps * signs((len(standing), 3, 1, width), generator)
        attempts.offer(standing, shift(levels[standing], stripes.to(levels.device)), always=True)
        for index, standing in attempts.rounds(squares):
            side = self._side(index / squares, height, width)
            inside = _squares(len(standing), side, height, width, generator).to(levels.device)
            offsets = self.eps * signs((len(standing), 3, 1, 1), generator).to(levels.device)
            attempts.offer(standing, torch.where(inside, shift(levels[standing], offsets), attempts.levels[standing]))
        return attempts.levels

    def _side(self, spent: float, height: int, width: int) -> int:
        """Return the side of the squares when a share `spent` of the queries is used up."""
        share = SHARE / 2 ** bisect_left(HALVINGS, spent * 10_000)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _squares(count: int, side: int, height: int, width: int, generator: Generator) -> Tensor:
    """Return randomly placed squares as masks, bool (count, 1, height, width)."""
    top = torch.randint(0, height - side + 1, (count, 1), generator=generator)
    left = torch.randint(0, width - side + 1, (count, 1), generator=generator)
    rows = torch.arange(height) - top
    columns = torch.arange(width) - left
    inside = ((rows >= 0) & (rows < side)).unsqueeze(2) & ((columns >= 0) & (columns < side)).unsqueeze(1)
    return inside.unsqueeze(1)
