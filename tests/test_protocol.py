"""Figures that docs/protocol.md states and no other test computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import timm_p2be  # noqa: F401
from timm_p2be.encodings import onehot_codes

TEXT = ' '.join((Path(__file__).parents[1] / 'docs' / 'protocol.md').read_text(encoding='utf-8').split())


@pytest.mark.parametrize('num_bits', [16, 64, 256])
def test_integer_bins_equal_the_float_rule_of_the_official_code(num_bits: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).float().div(255)  # what torchvision's ToTensor hands over
    bins = (pixels * num_bits).clamp(0, num_bits - 1).long()
    assert torch.equal(onehot_codes(num_bits).argmax(dim=1), bins)
    assert onehot_codes(num_bits).sum(dim=0).unique().tolist() == [256 // num_bits]  # at M = 64: 4 levels a bin


def test_truncated_float_pixels_are_the_levels() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).float().div(255)
    assert torch.equal((pixels * 255).long(), torch.arange(256))


def test_truncating_a_float_mixture_lowers_15_percent_of_untouched_pixels() -> None:
    generator = np.random.default_rng(0)
    levels = torch.arange(256)
    pixels = levels.to(torch.uint8).float().div(255)
    lowered = 0
    for _ in range(2000):
        weights, m = generator.dirichlet([1, 1, 1]).astype(np.float32), np.float32(generator.beta(1, 1))
        chains = sum(float(weight) * pixels for weight in weights)
        mixed = (1 - float(m)) * pixels + float(m) * chains
        lowered += int(((mixed * 255).long() < levels).sum())
    assert lowered / (2000 * 256) == pytest.approx(0.15, abs=0.01)
    assert 'about 15 % of the pixels' in TEXT


def test_start_of_a_normal_table() -> None:
    weight = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    assert (weight.abs() >= 1).float().mean().item() == pytest.approx(0.317, abs=0.002)


@pytest.mark.parametrize('name', ['wrn40_2', 'densenetbc100_12', 'resnext29_4x32d'])
def test_parameter_counts_of_the_table(name: str) -> None:
    row = re.search(rf'`{name}` \| [^|]* \| ([\d,]+) / ([\d,]+) \|', TEXT)
    assert row
    for classes, printed in zip((10, 100), row.groups(), strict=True):
        model = timm.create_model(name, num_classes=classes)
        assert f'{sum(p.numel() for p in model.parameters()):,}' == printed


@pytest.mark.parametrize(
    ('rgb', 'classes', 'more'),
    [('wrn40_2', 100, 27_216), ('densenetbc100_12', 10, 40_824), ('resnext29_4x32d', 10, 108_864)],
)
def test_parameters_that_encoding_adds(rgb: str, classes: int, more: int) -> None:
    counts = {
        name: sum(p.numel() for p in timm.create_model(name, num_classes=classes).parameters())
        for name in (rgb, f'{rgb}_onehot', f'{rgb}_p2be')
    }
    assert counts[f'{rgb}_onehot'] - counts[rgb] == more
    assert counts[f'{rgb}_p2be'] - counts[f'{rgb}_onehot'] == 16_384
    assert f'{more:,}' in TEXT
    if rgb == 'wrn40_2':
        assert f'{counts["wrn40_2_p2be"]:,}' in TEXT


def test_parameters_of_resnet50() -> None:
    assert f'{sum(p.numel() for p in timm.create_model("resnet50_p2be").parameters()):,}' in TEXT
    assert f'{sum(p.numel() for p in timm.create_model("resnet50").parameters()):,}' in TEXT


def test_thermometer_ce_of_table_iii_does_not_average_to_its_mce() -> None:
    errors = [62, 62, 61, 69, 79, 65, 67, 71, 71, 63, 57, 63, 78, 61, 68]  # as printed
    assert np.mean(errors) == pytest.approx(66.47, abs=0.01)
    assert 'average 66.5, the printed mCE is 66.2' in TEXT
