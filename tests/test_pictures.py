"""Pictures of codes: similarities against their definition, panels against the table, the curve against distances."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.hub.pictures import code_similarity, codes_picture

LEFT = TOP = 140  # corner of the panel of bits
LEVEL, HEIGHT = 3, 768  # pixels of a level, of a panel
CURVE = 840


def _panel(picture: NDArray[np.uint8], left: int, width: int) -> NDArray[np.uint8]:
    return picture[TOP : TOP + HEIGHT, left : left + width]


def _random(num_bits: int) -> torch.Tensor:
    return (torch.rand(256, num_bits, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def test_similarity_is_the_cosine() -> None:
    codes = _random(16)
    codes[7] = 0
    similarity = code_similarity(codes)
    a, b = codes[3].numpy(), codes[200].numpy()
    assert similarity[3, 200] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert not similarity[7].any()
    assert not similarity[:, 7].any()


def test_similarity_of_the_fixed_tables() -> None:
    onehot = code_similarity(onehot_codes(64))
    assert onehot[0, 3] == 1  # levels 0 to 3 share a bin
    assert onehot[0, 4] == 0
    # level 0 has 64 ones, level 255 one of them (docs/protocol.md)
    assert code_similarity(thermometer_codes(64))[0, 255] == pytest.approx(0.125)


def test_random_codes_have_about_half() -> None:
    others = code_similarity(_random(64))[~torch.eye(256, dtype=torch.bool)]
    assert others.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(('num_bits', 'bit_width'), [(1, 96), (8, 72), (64, 9), (256, 2), (700, 1)])
def test_picture_shows_bits_and_similarity(num_bits: int, bit_width: int) -> None:
    codes = _random(num_bits)
    pixels = np.asarray(codes_picture(codes, 'random').convert('L'))
    width = num_bits * bit_width
    bits = _panel(pixels, LEFT, width)[::LEVEL, ::bit_width]
    np.testing.assert_array_equal(bits, codes.numpy() * 255)
    similarity = _panel(pixels, LEFT + width + LEFT, HEIGHT)[::LEVEL, ::LEVEL]
    np.testing.assert_allclose(similarity, code_similarity(codes).numpy() * 255, atol=0.51)
    assert (pixels[: TOP // 2] < 128).any(), 'no title was drawn'


@pytest.mark.parametrize('codes', [thermometer_codes(64), onehot_codes(16), _random(64)])
def test_curve_follows_the_mean_distances(codes: torch.Tensor) -> None:
    pixels = np.asarray(codes_picture(codes))
    curve = _panel(pixels, pixels.shape[1] - 56 - CURVE, CURVE).astype(int)
    blue = curve[..., 2] - curve[..., 0] > 100
    distances = np.array(code_statistics(codes).distances)
    top = 1.08 * max(*distances, codes.shape[1] / 2 if codes.shape[1] / 2 < 2 * distances.max() else 0)
    for apart in range(1, 254):  # the frame covers the ends
        rows = blue[:, round(apart / 255 * CURVE)].nonzero()[0]
        assert rows.min() - 3 <= HEIGHT * (1 - distances[apart] / top) <= rows.max() + 3
        if apart > 16:
            assert len(rows) < HEIGHT / 8, 'the first steps alone are steep'


def test_the_line_of_random_codes_is_drawn_where_it_tells_something() -> None:
    gray = [140, 140, 140]
    for codes, expected in ((thermometer_codes(64), True), (onehot_codes(64), False)):
        pixels = np.asarray(codes_picture(codes))
        panel = _panel(pixels, pixels.shape[1] - 56 - CURVE, CURVE)
        assert bool((panel == gray).all(axis=-1).sum() > CURVE / 4) == expected


def test_picture_of_a_constant_table() -> None:
    """All distances are 0; the axes must not be."""
    pixels = np.asarray(codes_picture(torch.ones(256, 1)))
    curve = _panel(pixels, pixels.shape[1] - 56 - CURVE, CURVE).astype(int)
    assert (curve[-1, 10:-10, 2] - curve[-1, 10:-10, 0] > 100).all()
