"""Greedy search over blocks of pixel values among all legal levels, by queries alone.

The coarse-to-fine blocks are those of Moon, An and Song, ICML 2019 (snu-mllab/parsimonious-blackbox-attack,
attacks/parsimonious_attack.py). Their values are only -eps and +eps, which suffices where the loss is monotone in a
pixel. A table of codes need not be, so that here any legal level can be taken.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import max_pool2d

from timm_p2be.robustness.attacks.attack import Attack, Cost, check_count
from timm_p2be.robustness.attacks.attempts import Attempts, shift


class CoordinateSearch(Attack):
    """Sets one block of one color after the other to the offset from the clean image with the lowest margin.

    Blocks are squares of `block` pixels at first, then of half the side, down to single pixels, then again from the
    start. Blocks larger than a pixel try +-eps in one round and +-eps/2 and +-1 in the next, pixels all legal levels.
    Within a round the blocks come in order of how far the offsets moved the margin when the area was last visited, so
    that few queries go where the model does not look; the first order is random.

    Args: as `Attack`, and
        queries: most an image can cost, the clean one included; at least 2.
        block: side of the first blocks in pixels, a power of 2.
    """

    kind = 'score'

    def __init__(
        self, model: nn.Module, eps: int = 8, queries: int = 2000, block: int = 8, name: str = 'coordinate'
    ) -> None:
        super().__init__(model, eps, name)
        check_count('queries', queries, least=2)
        if not isinstance(block, int) or block < 1 or block & (block - 1):
            raise ValueError(f'Got block={block!r}; the side of the first blocks is a power of 2 (usual is 8).')
        self.queries = queries
        self.block = block

    def cost(self) -> Cost:
        return Cost(self.queries, 0)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels)
        effect = torch.rand(levels.shape, generator=generator).to(levels.device)
        left = self.queries - 1
        rounds = self._rounds()
        while left > 0 and self.eps > 0 and len(attempts.standing()) > 0:
            side, offsets = next(rounds)
            left = self._visit(levels, attempts, effect, side, offsets.to(levels.device), left)
        return attempts.levels

    def _rounds(self) -> Iterator[tuple[int, Tensor]]:
        """Yield side of the blocks and int16 offsets to try in them, without end."""
        extremes, inner = (self.eps,), sorted({self.eps // 2, 1} - {0, self.eps}, reverse=True)
        while True:
            side = self.block
            while side > 1:
                for sizes in filter(None, (extremes, inner)):
                    yield side, _both_ways(sizes)
                side //= 2
            yield 1, _both_ways(range(self.eps, -1, -1))

    def _visit(self, levels: Tensor, attempts: Attempts, effect: Tensor, side: int, offsets: Tensor, left: int) -> int:
        """Visit every block of one size once; return how many of the `left` queries of each standing image remain."""
        # effect: spread of the margin over the offsets tried last at each value, float32 (B, 3, H, W); updated
        sizes = max_pool2d(effect, side, ceil_mode=True)
        order = sizes.flatten(1).argsort(dim=1, descending=True)
        for visit in range(order.shape[1]):
            standing = attempts.standing()
            if len(standing) == 0 or left == 0:
                break
            offsets = offsets[:left]
            left -= len(offsets)
            inside = _blocks(order[standing, visit], sizes.shape[1:], side, levels)
            moved = shift(levels[standing].unsqueeze(1), offsets.view(1, -1, 1, 1, 1))
            candidates = torch.where(inside.unsqueeze(1), moved, attempts.levels[standing].unsqueeze(1))
            scores = attempts.score(standing, candidates)
            spread = scores.amax(dim=1) - scores.amin(dim=1)
            effect[standing] = torch.where(inside, spread.view(-1, 1, 1, 1), effect[standing])
            lowest, choice = scores.min(dim=1)
            better = (lowest < attempts.margins[standing]).nonzero().squeeze(1)
            attempts.take(standing[better], candidates[better, choice[better]], lowest[better])
        return left


def _both_ways(sizes: Iterable[int]) -> Tensor:
    """Return these sizes with either sign as offsets, int16, 0 once."""
    return torch.tensor(list(dict.fromkeys(sign * size for size in sizes for sign in (-1, 1))), dtype=torch.int16)


def _blocks(numbers: Tensor, grid: torch.Size, side: int, levels: Tensor) -> Tensor:
    """Return blocks of a (3, rows, columns) grid as masks of images such as `levels`, bool (N, 3, H, W)."""
    channel, row, column = torch.unravel_index(numbers, grid)
    spans = (
        (channel, torch.arange(3, device=levels.device)),
        (row, torch.arange(levels.shape[2], device=levels.device) // side),
        (column, torch.arange(levels.shape[3], device=levels.device) // side),
    )
    channels, rows, columns = (place.unsqueeze(0) == number.unsqueeze(1) for number, place in spans)
    return channels[:, :, None, None] & rows[:, None, :, None] & columns[:, None, None, :]
