"""Means over seeds, paired differences on the same seeds, and what they say of a claim."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from timm_p2be.extras import require
from timm_p2be.reproduce.grid import SEED, Claim

Outcome = Mapping[str, Any]
REPRODUCED, UNDECIDED, CONTRADICTED = 'reproduced', 'not at this scale', 'contradicted'


class Spread(NamedTuple):
    """Mean and standard deviation (None of a single value) of a figure over a number of seeds."""

    mean: float
    std: float | None
    seeds: int

    def __str__(self) -> str:
        return f'{self.mean:.2f}' + (f' ± {self.std:.2f}' if self.std is not None else '')


class Difference(NamedTuple):
    """Mean of paired differences in points and its 95 % t interval, which a single seed does not have."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(
    outcomes: Iterable[Outcome],
    axes: Iterable[str],
    axis: str,
    lower: str,
    than: str,
    error: str,
    where: Mapping[str, str],
) -> Difference | None:
    """Return error(`lower`) - error(`than`), values on `axis`, or None without a pair.

    Runs that differ on `axis` alone are pairs; a seed's difference is the mean over its pairs within `where`, and
    seeds that lack a pair which others have, since a run diverged, are left out.
    """
    rest = [name for name in axes if name not in (axis, SEED)]
    errors: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}  # seed -> the rest of a cell -> value on the axis
    for outcome in outcomes:
        if error in outcome['figures'] and where.items() <= outcome.items():
            cell = errors.setdefault(outcome[SEED], {}).setdefault(tuple(outcome[name] for name in rest), {})
            cell[outcome[axis]] = outcome['figures'][error]
    by_seed = [
        [cell[lower] - cell[than] for cell in cells.values() if {lower, than} <= cell.keys()]
        for cells in errors.values()
    ]
    most = max(map(len, by_seed), default=0)
    return over_seeds([statistics.fmean(pairs) for pairs in by_seed if 0 < len(pairs) == most])


def over_seeds(differences: Sequence[float]) -> Difference | None:
    """Return what differences, one of each seed, say together."""
    if not differences:
        return None
    mean, std, seeds = spread(differences)
    if std is None:
        return Difference(mean, None, None, seeds)
    half = require('scipy.stats', extra='robustness').t.ppf(0.975, seeds - 1) * std / seeds**0.5
    return Difference(mean, mean - half, mean + half, seeds)


def decide(claim: Claim, difference: Difference | None) -> str:
    """Return the verdict on a claim: by which side of `within` the interval lies on."""
    if difference is None or difference.low is None or difference.high is None:
        return UNDECIDED
    if difference.high < claim.within:
        return REPRODUCED
    return CONTRADICTED if difference.low > claim.within else UNDECIDED
