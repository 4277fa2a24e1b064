"""foolbox attacks encoded networks through attack_view, unchanged."""

import pytest
import timm
import torch

import timm_p2be
from timm_p2be.robustness.pixel_model import PixelModel


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('surrogate', ['auto', 'ramp'])
def test_foolbox(surrogate: str) -> None:
    foolbox = pytest.importorskip('foolbox')
    torch.manual_seed(0)
    network = timm.create_model('wrn10_2_thermometer', num_classes=5).eval()
    levels = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels = PixelModel(network)(levels).argmax(1)
    attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25, random_start=False)
    with pytest.raises(RuntimeError, match='attack_view'):  # not a zero gradient that would look like robustness
        attack(foolbox.PyTorchModel(network, (0, 1), device='cpu'), levels / 255, labels, epsilons=8 / 255)
    view = foolbox.PyTorchModel(timm_p2be.attack_view(network, surrogate), (0, 1), device='cpu')
    _, found, _ = attack(view, levels / 255, labels, epsilons=8 / 255)
    rounded = (found * 255).round().to(torch.uint8)
    assert (rounded.int() - levels.int()).abs().max() <= 8
    assert (PixelModel(network)(rounded).argmax(1) != labels).all()
