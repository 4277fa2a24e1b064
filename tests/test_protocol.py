"""Figures that docs/protocol.md states and no other test computes."""

import re
from pathlib import Path

import pytest
import timm
import torch

import timm_p2be  # noqa: F401

TEXT = ' '.join((Path(__file__).parents[1] / 'docs' / 'protocol.md').read_text(encoding='utf-8').split())


def count(name: str, classes: int) -> int:
    with torch.device('meta'):
        return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=classes).parameters())


@pytest.mark.parametrize(
    ('name', 'more'),
    [('wrn40_2', 27_216), ('densenetbc100_12', 40_824), ('densenet40_12', 40_824), ('resnext29_4x32d', 108_864)],
)
def test_parameter_counts_of_the_table(name: str, more: int) -> None:
    row = re.search(rf'`{name}` \| [^|]* \| ([\d,]+) / ([\d,]+) \|', TEXT)
    assert row
    assert row.groups() == tuple(f'{count(name, classes):,}' for classes in (10, 100))
    assert count(f'{name}_onehot', 10) - count(name, 10) == more
    assert f'{more:,}' in TEXT


@pytest.mark.parametrize(('name', 'classes'), [('wrn40_2_p2be', 100), ('resnet50_p2be', 1000), ('resnet50', 1000)])
def test_parameter_counts_of_the_text(name: str, classes: int) -> None:
    assert f'{count(name, classes):,}' in TEXT
