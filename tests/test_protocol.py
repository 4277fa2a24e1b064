"""Figures that docs/protocol.md states and no other test computes."""

import re
from pathlib import Path

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


def count(name: str, classes: int) -> int:
    return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=classes).parameters())


@pytest.mark.parametrize('name', ['wrn40_2', 'densenetbc100_12', 'densenet40_12', 'resnext29_4x32d'])
def test_parameter_counts_of_the_table(name: str) -> None:
    row = re.search(rf'`{name}` \| [^|]* \| ([\d,]+) / ([\d,]+) \|', TEXT)
    assert row
    assert row.groups() == tuple(f'{count(name, classes):,}' for classes in (10, 100))


@pytest.mark.parametrize(
    ('rgb', 'classes', 'more'),
    [
        ('wrn40_2', 100, 27_216),
        ('densenetbc100_12', 10, 40_824),
        ('densenet40_12', 10, 40_824),
        ('resnext29_4x32d', 10, 108_864),
    ],
)
def test_parameters_that_encoding_adds(rgb: str, classes: int, more: int) -> None:
    assert count(f'{rgb}_onehot', classes) - count(rgb, classes) == more
    assert count(f'{rgb}_p2be', classes) - count(f'{rgb}_onehot', classes) == 16_384
    assert f'{more:,}' in TEXT


@pytest.mark.parametrize(('name', 'classes'), [('wrn40_2_p2be', 100), ('resnet50_p2be', 1000), ('resnet50', 1000)])
def test_parameter_counts_of_the_text(name: str, classes: int) -> None:
    assert f'{count(name, classes):,}' in TEXT
