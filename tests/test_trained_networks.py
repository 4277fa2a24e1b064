"""The networks of docs/robustness.md: the attacks must break what has no defense."""

import hashlib
import json
from pathlib import Path

import pytest
from planted import standing_after

from timm_p2be.robustness.attacks.judge import is_correct
from timm_p2be.robustness.images import as_batch, read_images
from timm_p2be.robustness.pixel_model import load_model

NETWORKS = Path(__file__).parents[1] / 'benchmarks' / 'networks'
NAMES = ('wrn10_2', 'wrn10_2_onehot', 'wrn10_2_thermometer', 'wrn10_2_p2be')


def test_weights_are_those_that_were_measured() -> None:
    digests = json.loads((NETWORKS / 'sha256.json').read_text())
    assert digests == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(NETWORKS.glob('*.safetensors'))
    }
    assert {f'{name}.safetensors' for name in NAMES} < digests.keys()


ALL = ['fgsm', 'lspga-official', 'pgd']
ALONE = [('wrn10_2', 'pgd'), ('wrn10_2_thermometer', 'pgd-kernel')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'attacks'),
    [*((name, ALL) for name in NAMES), *((name, [one]) for name, pgd in ALONE for one in ('lspga-official', pgd))],
)
def test_attacks_break_networks_without_a_defense(name: str, attacks: list[str], p2be_data: Path) -> None:
    """At eps 8 at most 2 % of 500 photographs may stand, by the same attacks for every encoding and for RGB."""
    model = load_model(f'{name}={NETWORKS / name}.safetensors')
    data = read_images(f'hfds/{p2be_data}/cifar10', None, 'test', limit=500, input_key='img', target_key='label')
    levels, labels = as_batch(data, range(500))
    assert is_correct(model, levels, labels).mean() > 0.7
    assert standing_after(model, attacks, 8, levels, labels).float().mean() <= 0.02
