"""Statistics of a table of codes: how many differ, which bits say nothing, how distance grows with the levels apart."""

from dataclasses import dataclass

import torch
from torch import Tensor

from timm_p2be.encodings.codes import LEVELS, thermometer_codes


@dataclass(frozen=True)
class CodeStatistics:
    """What `code_statistics` measures of a table of L codes of M bits."""

    num_bits: int  # M
    distinct: int  # number of different codes
    unlike_thermometer: int | None  # bits that differ from the thermometer code's, 0..256 M; None unless L is 256
    ones: float  # mean number of bits set in a code, 0..M
    never_on: tuple[int, ...]  # indices of the bits that are 0 at every level
    always_on: tuple[int, ...]
    neighbors: tuple[float, float, float]  # smallest, mean and largest Hamming distance of levels k and k + 1
    distances: tuple[float, ...]  # mean Hamming distance of all pairs of levels d apart, d = 0..L - 1


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of the latents w behind a learned table; magnitudes are abs(w)."""

    mean_magnitude: float
    smallest_magnitude: float
    largest_magnitude: float
    saturated: float  # share (0..1) of |w| >= 1, where the approximate sign has no gradient (Eq. 6 of the paper)


def code_statistics(codes: Tensor) -> CodeStatistics:
    """Return the statistics of a table of codes, an (L, M) tensor of 0 and 1 whose row k is level k.

    Example:
        >>> statistics = code_statistics(torch.eye(256))
        >>> statistics.distinct, statistics.ones, statistics.distances[:3]
        (256, 1.0, (0.0, 2.0, 2.0))
    """
    bits = codes.detach().float().cpu()
    distances = torch.cdist(bits, bits, p=0)  # Hamming
    neighbors = distances.diagonal(1)
    levels_on = bits.sum(dim=0)
    return CodeStatistics(
        num_bits=bits.shape[1],
        distinct=len(bits.unique(dim=0)),
        unlike_thermometer=int((bits != thermometer_codes(bits.shape[1])).sum()) if len(bits) == LEVELS else None,
        ones=bits.sum(dim=1).mean().item(),
        never_on=tuple((levels_on == 0).nonzero().flatten().tolist()),
        always_on=tuple((levels_on == len(bits)).nonzero().flatten().tolist()),
        neighbors=(neighbors.min().item(), neighbors.mean().item(), neighbors.max().item()),
        distances=tuple(distances.diagonal(apart).mean().item() for apart in range(len(bits))),
    )


def latent_statistics(latents: Tensor) -> LatentStatistics:
    """Return the statistics of a table of latents, any shape with at least one value."""
    magnitudes = latents.detach().float().cpu().abs()
    return LatentStatistics(
        mean_magnitude=magnitudes.mean().item(),
        smallest_magnitude=magnitudes.min().item(),
        largest_magnitude=magnitudes.max().item(),
        saturated=(magnitudes >= 1).float().mean().item(),
    )
