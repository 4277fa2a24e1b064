"""Pictures of codes: similarities against their definition, panels against the table."""

import numpy as np
import pytest
import torch

from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.pictures import code_similarity, codes_picture


def test_similarity_is_the_cosine():
    codes = (torch.rand(256, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    codes[7] = 0
    similarity = code_similarity(codes)
    a, b = codes[3].numpy(), codes[200].numpy()
    assert similarity[3, 200] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert not similarity[7].any()
    assert not similarity[:, 7].any()


def test_similarity_of_the_fixed_tables():
    onehot = code_similarity(onehot_codes(64))
    assert onehot[0, 3] == 1  # levels 0 to 3 share a bin
    assert onehot[0, 4] == 0
    # level 0 has 64 ones, level 255 one of them (docs/protocol.md)
    assert code_similarity(thermometer_codes(64))[0, 255] == pytest.approx(0.125)


def test_random_codes_have_about_half():
    codes = (torch.randn(256, 64, generator=torch.Generator().manual_seed(0)) >= 0).float()
    others = code_similarity(codes)[~torch.eye(256, dtype=torch.bool)]
    assert others.mean() == pytest.approx(0.5, abs=0.02)


def test_picture_shows_bits_and_similarity():
    codes = thermometer_codes(64)
    pixels = np.asarray(codes_picture(codes, 'thermometer'))
    bits = pixels[48 : 48 + 512 : 2, 24 : 24 + 128 : 2]
    np.testing.assert_array_equal(bits, codes.numpy() * 255)
    right = pixels[48 : 48 + 512 : 2, 24 + 128 + 24 : 24 + 128 + 24 + 512 : 2]
    np.testing.assert_allclose(right, code_similarity(codes).numpy() * 255, atol=0.51)
    assert (pixels[:48] < 128).any(), 'no title was drawn'


def test_picture_of_a_narrow_table():
    assert codes_picture(torch.ones(256, 1)).size == (2 + 512 + 72, 512 + 72)
