"""Statistics of tables of codes against loops over all pairs of levels."""

import statistics
from itertools import combinations

import pytest
import torch

from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.encodings.statistics import code_statistics, latent_statistics


def _differences(a: list[float], b: list[float]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('num_bits', [1, 3, 64])
def test_statistics_against_loops(num_bits: int) -> None:
    codes = (torch.rand(256, num_bits, generator=torch.Generator().manual_seed(num_bits)) > 0.5).float()
    if num_bits > 1:
        codes[:, 0], codes[:, 1] = 0, 1
    rows = codes.tolist()
    found = code_statistics(codes)
    assert found.num_bits == num_bits
    assert found.distinct == len(set(map(tuple, rows)))
    assert found.ones == pytest.approx(statistics.mean(map(sum, rows)))
    columns = list(zip(*rows, strict=True))
    assert found.never_on == tuple(bit for bit, column in enumerate(columns) if not any(column))
    assert found.always_on == tuple(bit for bit, column in enumerate(columns) if all(column))
    if num_bits > 1:
        assert found.never_on == (0,)
        assert found.always_on == (1,)
    apart: dict[int, list[int]] = {0: [0]}
    for i, j in combinations(range(256), 2):
        apart.setdefault(j - i, []).append(_differences(rows[i], rows[j]))
    assert found.distances == pytest.approx([statistics.mean(apart[d]) for d in range(256)], rel=1e-6)
    neighbors = apart[1]
    assert found.neighbors == pytest.approx((min(neighbors), statistics.mean(neighbors), max(neighbors)))


def test_the_fixed_tables() -> None:
    thermometer, onehot = code_statistics(thermometer_codes(64)), code_statistics(onehot_codes(64))
    assert thermometer.distinct == onehot.distinct == 64
    assert thermometer.always_on == (63,)  # the last bit is on from level 0
    assert onehot.ones == 1
    assert max(onehot.distances) == 2
    assert thermometer.neighbors[0] == 0
    assert thermometer.neighbors[2] == 1
    assert thermometer.distances[255] == 63


def test_learned_codes_of_a_parameter_are_read_without_a_graph() -> None:
    codes = torch.ones(4, 2, requires_grad=True)
    assert code_statistics(codes).distinct == 1


def test_latents() -> None:
    found = latent_statistics(torch.tensor([[0.5, -1.0], [-2.0, 0.25]]))
    assert found.mean_magnitude == pytest.approx(0.9375)
    assert found.smallest_magnitude == 0.25
    assert found.largest_magnitude == 2
    assert found.saturated == 0.5  # |w| = 1 has no gradient either
