"""PGD and APGD: bounds, early stopping, the schedule of APGD, and that they find what is there to find."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_p2be
from timm_p2be.robustness.attacks.gradient import APGD, PGD, _checkpoints
from timm_p2be.robustness.pixel_model import PixelModel


class Planted(nn.Module):
    """Class 1 if the upper left corner is brighter than 120 levels on average, else class 0; nothing else matters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))
        self.num_classes = 3
        self.pretrained_cfg = {'architecture': 'planted', 'mean': (0, 0, 0), 'std': (1, 1, 1), 'input_size': (3, 8, 8)}

    def forward(self, images: Tensor) -> Tensor:
        score = self.scale * (images[:, :, :2, :2].mean(dim=(1, 2, 3)) - 120.2 / 255)
        return torch.stack([-score, score, torch.full_like(score, -99.0)], dim=1)


def _gray(*values: int) -> Tensor:
    return torch.stack([torch.full((3, 8, 8), value, dtype=torch.uint8) for value in values])


ATTACKS = {
    'fgsm': lambda model, eps: PGD(model, eps, 'straight-through', steps=1),
    'pgd': lambda model, eps: PGD(model, eps, 'straight-through', steps=10),
    'pgd margin': lambda model, eps: PGD(model, eps, 'straight-through', steps=10, loss='margin', restarts=2),
    'apgd': lambda model, eps: APGD(model, eps, 'straight-through', steps=10),
    'apgd margin': lambda model, eps: APGD(model, eps, 'straight-through', steps=10, loss='margin', restarts=2),
}
each_attack = pytest.mark.parametrize('build', ATTACKS.values(), ids=ATTACKS)


@each_attack
def test_planted_weakness_is_found_exactly_within_the_bound(build: Any) -> None:
    model = PixelModel(Planted())
    levels, labels = _gray(112, 113, 90, 128, 129, 121), torch.tensor([0, 0, 0, 1, 1, 1])
    got = build(model, 8)(levels, labels)
    assert (got.int() - levels.int()).abs().max() == 8
    # the threshold lies at 120.2 levels: 113 + 8 crosses it and 112 + 8 does not
    assert (model(got).argmax(1) != labels).tolist() == [False, True, False, True, False, True]


@each_attack
def test_bound_holds_on_an_encoded_net_and_the_loss_rises(build: Any) -> None:
    torch.manual_seed(0)
    model = PixelModel(timm.create_model('wrn10_2_thermometer', num_classes=5))
    levels = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    before = levels.clone()
    labels = model(levels).argmax(1)
    for eps in (0, 1, 8):
        got = build(model, eps)(levels, labels)
        assert got.dtype == torch.uint8
        assert (got.int() - levels.int()).abs().max() <= eps
        assert torch.equal(levels, before)
    assert nn.functional.cross_entropy(model(got), labels) > nn.functional.cross_entropy(model(levels), labels)


@each_attack
def test_misclassified_images_cost_nothing_more(build: Any) -> None:
    model = PixelModel(Planted())
    levels = _gray(200, 10)
    got = build(model, 8)(levels, torch.tensor([0, 1]))
    assert torch.equal(got, levels)


def test_one_step_from_the_clean_image_is_fgsm() -> None:
    attack = PGD(PixelModel(Planted()), 8, 'straight-through', steps=1)
    assert (attack.kind, attack.name, attack.step_size) == ('one-step', 'fgsm-straight-through', 8)
    got = attack(_gray(100), torch.tensor([0]))
    assert got[0, :, :2, :2].unique().tolist() == [108]
    assert got[0, :, 2:].unique().tolist() == [100]  # no gradient there


def test_apgd_checkpoints_are_those_of_the_paper() -> None:
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(100)[41] == 22


def test_apgd_halves_its_step_where_progress_stops() -> None:
    """A narrow ridge: constant steps of 2 eps jump over it for ever, halved ones come closer."""
    model = PixelModel(_Ridge())
    levels = _gray(100)
    apgd = APGD(model, 8, 'straight-through', steps=40)(levels, torch.tensor([0]))
    coarse = PGD(model, 8, 'straight-through', steps=40, step_size=16.0)(levels, torch.tensor([0]))
    best = model(_gray(103))[0, 1]
    assert model(apgd)[0, 1] == pytest.approx(best.item(), abs=1e-3)
    assert model(coarse)[0, 1] < best - 1


class _Ridge(Planted):
    """The loss is largest at level 103, yet the image never falls."""

    def forward(self, images: Tensor) -> Tensor:
        distance = (images.mean(dim=(1, 2, 3)) * 255 - 103).abs()
        return torch.stack([torch.full_like(distance, 20.0), -distance, torch.full_like(distance, -99.0)], dim=1)


def test_names_and_costs() -> None:
    model = PixelModel(timm.create_model('wrn10_2_p2be', num_classes=5))
    assert PGD(model).name == 'pgd-kernel'
    assert APGD(model, surrogate='linear', loss='margin').name == 'apgd-linear-margin'
    assert APGD(model, restarts=3).cost() == (3, 300)
    assert PGD(model, restarts=2, steps=5).cost() == (2, 10)


def test_random_starts_come_from_the_generator() -> None:
    torch.manual_seed(0)
    model = PixelModel(timm.create_model('wrn10_2_p2be', num_classes=5))
    levels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    labels = model(levels).argmax(1)
    attack = PGD(model, 1, steps=2, restarts=2)
    first, again, other = (attack(levels, labels, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (model(first).argmax(1) != labels).all() or not torch.equal(first, other)


@pytest.mark.parametrize(
    ('attack', 'arguments', 'message'),
    [
        (PGD, {'eps': 300}, 'eps=300'),
        (PGD, {'steps': 0}, 'steps=0'),
        (PGD, {'restarts': 0}, 'restarts=0'),
        (PGD, {'step_size': -1.0}, r'step_size=-1\.0'),
        (PGD, {'loss': 'dlr'}, r"loss 'dlr'; choose one of \['ce', 'margin'\]"),
        (PGD, {'surrogate': 'ramp'}, "'ramp' does not fit"),
        (APGD, {'steps': 1}, 'at least 2'),
    ],
)
def test_bad_arguments(attack: Any, arguments: dict[str, Any], message: str) -> None:
    model = PixelModel(timm_p2be.convert(timm.create_model('resnet10t', num_classes=5), 'p2be'))
    with pytest.raises(ValueError, match=message):
        attack(model, **arguments)


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match='uint8 levels'):
        PGD(PixelModel(Planted()), surrogate='straight-through')(torch.rand(1, 3, 8, 8), torch.tensor([0]))


def test_without_stop_the_attack_climbs_beyond_the_boundary() -> None:
    model = PixelModel(Planted())
    levels, labels = _gray(113, 150), torch.tensor([0, 0])  # the second is misclassified as it is
    stopped, on = (PGD(model, 16, 'straight-through', steps=10, stop=stop)(levels, labels) for stop in (True, False))
    assert 120 < stopped[0, :, :2, :2].float().mean() < 129
    assert on[0, :, :2, :2].unique().tolist() == [129]
    assert torch.equal(stopped[1], levels[1])
    assert on[1, :, :2, :2].unique().tolist() == [166]
