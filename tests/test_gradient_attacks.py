"""PGD and APGD: early stopping, the schedule of APGD, and that they find what is there to find."""

from typing import Any

import pytest
import timm
import torch
from planted import Corner, Planted
from torch import Tensor

from timm_p2be.robustness.attacks import APGD, PGD
from timm_p2be.robustness.attacks.apgd import _checkpoints


def _gray(*values: int) -> Tensor:
    return torch.stack([torch.full((3, 8, 8), value, dtype=torch.uint8) for value in values])


@pytest.mark.parametrize(
    ('attack', 'arguments'),
    [
        (PGD, {'steps': 1}),
        (PGD, {'steps': 10, 'loss': 'margin', 'restarts': 2}),
        (APGD, {'steps': 10, 'loss': 'margin', 'restarts': 2}),
    ],
)
def test_planted_weakness_is_found_exactly_within_the_bound(attack: type[PGD], arguments: dict[str, Any]) -> None:
    model = Corner()
    levels, labels = _gray(112, 113, 90, 128, 129, 121, 200, 10), torch.tensor([0, 0, 0, 1, 1, 1, 0, 1])
    attacking = attack(model, 8, **arguments)
    got = attacking(levels, labels)
    assert (got.int() - levels.int()).abs().max() == 8
    # the threshold lies at 120.2 levels: 113 + 8 crosses it and 112 + 8 does not; the last two are wrong as they are
    assert (attacking.model(got).argmax(1) != labels).tolist() == [False, True, False, True, False, True, True, True]
    assert torch.equal(got[6:], levels[6:])


def test_one_step_from_the_clean_image_is_fgsm() -> None:
    attack = PGD(Corner(), 8, steps=1)
    assert (attack.kind, attack.name, attack.step_size) == ('one-step', 'fgsm-straight-through', 8)
    got = attack(_gray(100), torch.tensor([0]))
    assert got[0, :, :2, :2].unique().tolist() == [108]
    assert got[0, :, 2:].unique().tolist() == [100]  # no gradient there


def test_apgd_checkpoints_are_those_of_the_paper() -> None:
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(100)[41] == 22


def test_apgd_halves_the_steps_of_images_whose_loss_rose_in_fewer_than_three_of_four_steps() -> None:
    clean, most = _gray(100, 100, 100, 100).float(), torch.tensor([99.0, 0.0, 15.0, 16.0])
    ascent = APGD(Corner(), 8, steps=100)._ascent(clean, clean)
    for step in range(23):  # the first checkpoint is step 22: 17 rises are enough, 16 are not
        ascent.move(step, most.clamp(max=step), torch.ones_like(clean))
    assert ascent.step.flatten().tolist() == [16, 8, 8, 16]


class _Ridge(Planted):
    """The loss is largest at level 103, yet the image never falls."""

    def lead(self, images: Tensor) -> Tensor:
        return -20 - (images.mean(dim=(1, 2, 3)) * 255 - 103).abs()


def test_apgd_halves_its_step_where_progress_stops() -> None:
    """A narrow ridge: constant steps of 2 eps jump over it for ever, halved ones come closer."""
    levels, labels = _gray(100), torch.tensor([0])
    fine, coarse = APGD(_Ridge(8), 8, steps=40), PGD(_Ridge(8), 8, steps=40, step_size=16.0)
    best = fine.model(_gray(103))[0, 1].item()
    assert fine.model(fine(levels, labels))[0, 1].item() == pytest.approx(best, abs=1e-3)
    assert coarse.model(coarse(levels, labels))[0, 1].item() < best - 1


def test_names_and_costs() -> None:
    model = timm.create_model('wrn10_2_p2be', num_classes=5)
    assert PGD(model).name == 'pgd-kernel'
    assert PGD(timm.create_model('wrn10_2', num_classes=5)).name == 'pgd-straight-through'
    assert APGD(model, surrogate='linear', loss='margin').name == 'apgd-linear-margin'
    assert APGD(model, restarts=3).cost() == (3, 300)
    assert PGD(model, restarts=2, steps=5).cost() == (2, 10)
    classes = model.num_classes  # of which all but the right one are targets
    assert PGD(model, restarts=99, steps=5, loss='target').cost() == (classes, 5 * (classes - 1))


def test_later_restarts_are_random_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    attack, starts = PGD(Corner(), steps=2, restarts=2), []
    rule = attack._ascent
    monkeypatch.setattr(attack, '_ascent', lambda start, clean: starts.append(start) or rule(start, clean))
    for seed in (3, 3, 4):
        got = attack(_gray(100), torch.tensor([0]), torch.Generator().manual_seed(seed))
        assert got[0, 0, 4:].unique().tolist() == [100]  # the random start was no better, and is forgotten
    first, again, other = starts[1::2]
    assert torch.equal(starts[0], _gray(100).float())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    offsets = first - 100
    assert (offsets.min().round(), offsets.max().round()) == (-8, 8)


def test_without_stop_the_attack_climbs_beyond_the_boundary() -> None:
    levels, labels = _gray(113, 150), torch.tensor([0, 0])  # the second is misclassified as it is
    stopped, on = (PGD(Corner(), 16, steps=10, stop=stop)(levels, labels) for stop in (True, False))
    assert 120 < stopped[0, :, :2, :2].float().mean() < 129
    assert on[0, :, :2, :2].unique().tolist() == [129]
    assert torch.equal(stopped[1], levels[1])
    assert on[1, :, :2, :2].unique().tolist() == [166]
