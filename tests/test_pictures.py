"""Pictures of codes: similarities against their definition, panels against the table, the curve against distances."""

import sys

import numpy as np
import pytest
import torch

from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.hub.pictures import codes_figure, codes_picture


def _random(num_bits: int) -> torch.Tensor:
    return (torch.rand(256, num_bits, generator=torch.Generator().manual_seed(0)) > 0.5).float()


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


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ValueError, match=r'matplotlib.* pip install .timm-p2be\[robustness\]'):
        codes_picture(thermometer_codes(8))
