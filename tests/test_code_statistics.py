"""Statistics of tables of codes against loops over all pairs of levels, and pictures against the tables."""

import statistics
from itertools import combinations

import numpy as np
import pytest
import torch

from timm_p2be.encodings import onehot_codes
from timm_p2be.encodings.statistics import code_statistics, latent_statistics
from timm_p2be.hub.pictures import codes_figure, codes_picture


def _random(num_bits: int) -> torch.Tensor:
    return (torch.rand(256, num_bits, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def _differences(a: list[float], b: list[float]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('num_bits', [1, 64])
def test_statistics_against_loops(num_bits: int) -> None:
    codes = _random(num_bits)
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


def test_a_table_that_is_learned_on() -> None:
    assert code_statistics(torch.ones(4, 2, requires_grad=True)).distinct == 1


def test_latents() -> None:
    found = latent_statistics(torch.tensor([[0.5, -1.0], [-2.0, 0.25]]))
    assert found.mean_magnitude == pytest.approx(0.9375)
    assert found.smallest_magnitude == 0.25
    assert found.largest_magnitude == 2
    assert found.saturated == 0.5  # |w| = 1 has no gradient either


# pictures


@pytest.mark.parametrize(
    ('codes', 'random_line'),
    [
        (_random(64), True),
        (onehot_codes(64), False),
        (torch.ones(256, 1), False),
    ],
)
def test_the_panels_show_the_table(codes: torch.Tensor, random_line: bool) -> None:
    figure = codes_figure(codes, 'the $title$')
    bits, similarity, curve = figure.axes[:3]
    np.testing.assert_array_equal(bits.images[0].get_array(), codes.numpy())
    shown = similarity.images[0].get_array()
    for i, j in ((0, 3), (3, 200), (0, 255)):
        a, b = codes[i].numpy(), codes[j].numpy()
        assert shown[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), code_statistics(codes).distances)
    assert (len(curve.lines) == 2) == random_line
    assert figure.get_suptitle() == 'the $title$'


def test_the_picture_is_drawn() -> None:
    pixels = np.asarray(codes_picture(torch.ones(256, 1), 'one_{bit}'))
    assert pixels.shape[2] == 3
    assert pixels.shape[1] > 2 * pixels.shape[0] > 1000
    assert len(np.unique(pixels)) > 2
