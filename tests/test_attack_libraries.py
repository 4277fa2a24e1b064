"""foolbox and the Adversarial Robustness Toolbox attack encoded networks through attack_view, unchanged."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import timm_p2be
from timm_p2be.robustness.pixel_model import PixelModel

EPS = 8


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('wrn10_2_thermometer', num_classes=5).eval()


@pytest.fixture(scope='module')
def images() -> tuple[Tensor, Tensor]:
    levels = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return levels, levels / 255


def _judge(network: nn.Module, levels: Tensor, found: Tensor, labels: Tensor) -> Tensor:
    """Which of the images, rounded to levels within the bound, the network itself gets wrong."""
    rounded = (found * 255).round().to(torch.uint8)
    assert (rounded.int() - levels.int()).abs().max() <= EPS
    return PixelModel(network)(rounded).argmax(1) != labels


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_foolbox(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip('foolbox')
    levels, floats = images
    labels = PixelModel(network)(levels).argmax(1)
    attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25, random_start=False)
    with pytest.raises(RuntimeError, match='attack_view'):  # not a zero gradient that would look like robustness
        attack(foolbox.PyTorchModel(network, (0, 1), device='cpu'), floats, labels, epsilons=EPS / 255)
    view = foolbox.PyTorchModel(timm_p2be.attack_view(network), (0, 1), device='cpu')
    _, found, _ = attack(view, floats, labels, epsilons=EPS / 255)
    assert _judge(network, levels, found, labels).all()


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_adversarial_robustness_toolbox(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    from art.attacks.evasion import ProjectedGradientDescentNumpy
    from art.estimators.classification import PyTorchClassifier

    levels, floats = images
    labels = PixelModel(network)(levels).argmax(1)
    view = timm_p2be.attack_view(network, surrogate='ramp')
    classifier = PyTorchClassifier(
        view, nn.CrossEntropyLoss(), (3, 32, 32), 5, clip_values=(0.0, 1.0), device_type='cpu'
    )
    attack = ProjectedGradientDescentNumpy(classifier, eps=EPS / 255, eps_step=2 / 255, max_iter=10, verbose=False)
    found = attack.generate(floats.numpy(), np.eye(5, dtype=np.float32)[labels])
    assert _judge(network, levels, torch.from_numpy(found), labels).all()
