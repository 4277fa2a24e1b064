"""Libraries attack and certify encoded networks, unchanged; AutoAttack's figures are recorded, and ours reach them."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from planted import Corner, random_levels, standing_after
from torch import Tensor, nn

import timm_p2be
from timm_p2be.robustness.attacks.judge import is_correct
from timm_p2be.robustness.images import as_batch, read_images
from timm_p2be.robustness.pixel_model import PixelModel, load_model

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


def _network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('wrn10_2_thermometer', num_classes=5).eval()


def _all_fell(network: nn.Module, found: Tensor, levels: Tensor, labels: Tensor) -> bool:
    rounded = (found * 255).round().to(torch.uint8)
    assert (rounded.int() - levels.int()).abs().max() <= 8
    return not is_correct(PixelModel(network), rounded, labels).any()


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_foolbox() -> None:
    foolbox = pytest.importorskip('foolbox')
    network, levels = _network(), random_levels(6)
    labels = PixelModel(network)(levels).argmax(1)
    attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25, random_start=False)
    with pytest.raises(RuntimeError, match='attack_view'):  # not a zero gradient that would look like robustness
        attack(foolbox.PyTorchModel(network, (0, 1), device='cpu'), levels / 255, labels, epsilons=8 / 255)
    view = foolbox.PyTorchModel(timm_p2be.attack_view(network), (0, 1), device='cpu')
    assert _all_fell(network, attack(view, levels / 255, labels, epsilons=8 / 255)[1], levels, labels)


@pytest.mark.filterwarnings('ignore')
def test_autoattack() -> None:
    autoattack = pytest.importorskip('pyautoattack')
    network, levels = _network(), random_levels(6)
    labels = PixelModel(network)(levels).argmax(1)
    attack = autoattack.AutoAttack(timm_p2be.attack_view(network), norm='Linf', eps=8 / 255, device='cpu', seed=0)
    attack.attacks_to_run = ['apgd-ce']
    assert _all_fell(network, attack.run_standard_evaluation(levels / 255, labels)[0], levels, labels)


@pytest.mark.filterwarnings('ignore')
def test_randomized_smoothing() -> None:
    """Rounding comes after the noise, so the radius holds: a sure class, and none where the noise decides."""
    pytest.importorskip('statsmodels')  # of the toolbox's confidence bounds
    smoothing = pytest.importorskip('art.estimators.certification.randomized_smoothing')
    classifier = pytest.importorskip('art.estimators.classification').PyTorchClassifier
    model = PixelModel(Corner())
    smooth = smoothing.NumpyRandomizedSmoothing(
        classifier=classifier(model, nn.CrossEntropyLoss(), (3, 8, 8), 2, device_type='cpu'),
        sample_size=20, scale=0.05, alpha=0.01,
    )  # fmt: skip
    images = torch.tensor([0, 255, 120]).view(-1, 1, 1, 1).expand(3, 3, 8, 8)
    classes, radii = smooth.certify((images / 255).numpy(), n=100)
    assert classes[:2].tolist() == [0, 1]
    assert (radii[:2] > 0.05).all()
    assert radii[2] < 0.02


def _trained(name: str, folder: Path, count: int) -> tuple[PixelModel, Tensor, Tensor]:
    """Return a network of benchmarks/networks with photographs and labels."""
    model = load_model(f'{name}={BENCHMARKS / "networks" / name}.safetensors')
    data = read_images(f'hfds/{folder}/cifar10', None, 'test', limit=count, input_key='img', target_key='label')
    return model, *as_batch(data, range(count))


# by bound: 1 level on fewer images than 2 and 8
RECORDED = {
    eps: json.loads((BENCHMARKS / 'results' / f'attack_libraries{name}.json').read_text())
    for eps, name in ((1, '_eps1'), (2, ''), (8, ''))
}


@pytest.mark.parametrize('eps', RECORDED)
@pytest.mark.parametrize('network', ['rgb', 'onehot', 'thermometer', 'p2be', 'p2be_rough'])
def test_libraries_fell_alone_what_the_docs_say(network: str, eps: int) -> None:
    result = RECORDED[eps]['networks'][f'{network}-eps{eps}']
    assert result['theirs_alone'] == ((network, eps) == ('rgb', 2))


@pytest.mark.slow
@pytest.mark.parametrize('eps', RECORDED)
@pytest.mark.parametrize('encoding', ['p2be', 'thermometer'])
def test_dga_and_ls_pga_leave_no_more_than_autoattack_did(encoding: str, eps: int, p2be_data: Path) -> None:
    model, levels, labels = _trained(f'wrn10_2_{encoding}', p2be_data, RECORDED[eps]['images'])
    standing = standing_after(model, ['dga', 'lspga-official'], eps, levels, labels)
    theirs = RECORDED[eps]['networks'][f'{encoding}-eps{eps}']['theirs']
    assert int(standing.sum()) <= list(theirs.values())[-1][0]


# the networks of docs/robustness.md: the attacks must break what has no defense


def test_weights_are_those_that_were_measured() -> None:
    digests = json.loads((BENCHMARKS / 'networks' / 'sha256.json').read_text())
    assert digests == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((BENCHMARKS / 'networks').glob('*.safetensors'))
    }


NAMES = ('wrn10_2', 'wrn10_2_onehot', 'wrn10_2_thermometer', 'wrn10_2_p2be')
ALL = ['fgsm', 'lspga-official', 'pgd']
ALONE = [('wrn10_2', 'pgd'), ('wrn10_2_thermometer', 'pgd-kernel')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'attacks'),
    [*((name, ALL) for name in NAMES), *((name, [one]) for name, pgd in ALONE for one in ('lspga-official', pgd))],
)
def test_attacks_break_networks_without_a_defense(name: str, attacks: list[str], p2be_data: Path) -> None:
    """At eps 8 at most 2 % of 500 photographs may stand, by the same attacks for every encoding and for RGB."""
    model, levels, labels = _trained(name, p2be_data, 500)
    assert is_correct(model, levels, labels).mean() > 0.7
    assert standing_after(model, attacks, 8, levels, labels).float().mean() <= 0.02
