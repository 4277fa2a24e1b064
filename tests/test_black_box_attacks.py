"""Attacks without gradients, on models whose weakness is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from timm_p2be.robustness.attacks import Attack, Noise, Square, Transfer, attempts
from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.attempts import Attempts, margins
from timm_p2be.robustness.attacks.square import _squares
from timm_p2be.robustness.pixel_model import PixelModel

Build = Callable[..., Attack]


class Counted(PixelModel):
    """A function from images in [0, 1] to 3 logits as a pixel model that remembers the images it is asked about."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = 'planted') -> None:
        network = nn.Linear(1, 3)
        network.num_classes = 3  # type: ignore[assignment]
        super().__init__(network, mean=(0, 0, 0), std=(1, 1, 1), name=name)
        self.function = function
        self.seen: list[Tensor] = []

    @property
    def asked(self) -> list[int]:
        return [len(images) for images in self.seen]

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.function(images.float() / 255 if images.dtype == torch.uint8 else images)


def planted(threshold: float = 3.0) -> Counted:
    """Class 1 from `threshold` levels above mid-gray in the mean of the left half's red, class 0 below."""

    def logits(images: Tensor) -> Tensor:
        height = (images[:, 0, :, : images.shape[3] // 2].mean(dim=(1, 2)) * 255 - 128 - threshold) / 10
        return torch.stack([-height, height, height - 1], dim=1)

    return Counted(logits)


def constant() -> Counted:
    return Counted(lambda images: images.new_tensor([1.0, 0.0, 0.0]).expand(len(images), 3))


def gray(count: int = 4, size: int = 8, level: int = 128) -> tuple[Tensor, Tensor]:
    return torch.full((count, 3, size, size), level, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)


ATTACKS = [
    pytest.param(lambda model, eps=8: Noise(model, eps, draws=20), id='noise'),
    pytest.param(lambda model, eps=8: Transfer(model, Square(planted(), eps, queries=100)), id='transfer'),
    pytest.param(lambda model, eps=8: Square(model, eps, queries=100), id='square'),
]
SEARCHES = ATTACKS[2:]


def distance(attempt: Tensor, levels: Tensor) -> int:
    return int((attempt.int() - levels.int()).abs().max())


@pytest.mark.parametrize('build', ATTACKS[1:])
def test_a_planted_weakness_is_found(build: Build) -> None:
    model = planted()
    levels, labels = gray()
    levels = torch.cat([levels, levels + 100])  # the second half shows the other class
    labels = torch.cat([labels, labels + 1])
    assert (margins(model, levels, labels) >= 0).all()
    attempt = build(model)(levels, labels)
    assert (margins(model, attempt, labels)[:4] < 0).all()
    assert distance(attempt, levels) <= 8


@pytest.mark.parametrize('build', SEARCHES)
def test_a_weakness_just_inside_the_bound_is_found_and_one_outside_is_not(build: Build) -> None:
    levels, labels = gray(2)
    assert (margins(planted(6.0), build(planted(6.0))(levels, labels), labels) < 0).all()
    attempt = build(planted(8.5))(levels, labels)
    assert (margins(planted(8.5), attempt, labels) >= 0).all()
    assert distance(attempt, levels) <= 8


@pytest.mark.parametrize('build', ATTACKS)
def test_wrong_images_are_returned_unchanged_for_one_query(build: Build) -> None:
    model = planted()
    levels, labels = gray()
    attempt = build(model)(levels, labels + 1)
    assert torch.equal(attempt, levels)
    assert sum(model.asked) == 4


@pytest.mark.parametrize('build', ATTACKS)
def test_an_image_costs_at_most_what_is_stated_and_nothing_more_once_it_has_fallen(build: Build) -> None:
    model, levels, labels = planted(8.5), *gray(2)
    attack = build(model)
    attack(levels, labels)
    stated = 1 if attack.kind == 'transfer' else attack.cost().forwards
    assert sum(model.asked) == stated * 2
    assert attack.cost().backwards == 0
    if attack.kind == 'score':
        falls = planted()
        build(falls)(levels, labels)
        assert sum(falls.asked) < 2 * stated / 2


@pytest.mark.parametrize('build', ATTACKS)
def test_a_constant_model_stands_and_an_empty_batch_passes(build: Build) -> None:
    levels, labels = gray()
    attempt = build(constant())(levels, labels)
    assert (margins(constant(), attempt, labels) > 0).all()
    assert distance(attempt, levels) <= 8
    assert build(planted())(levels[:0], labels[:0]).shape == (0, 3, 8, 8)


def test_batches_of_candidates_keep_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, 'BATCH', 3)
    model = planted(8.5)
    Square(model, queries=50)(*gray(5))
    assert max(model.asked) == 3


def test_a_tie_counts_as_argmax_decides_it() -> None:
    tied = Counted(lambda images: images.new_zeros(len(images), 3))
    assert Attempts(tied, gray(2)[0], torch.tensor([0, 1])).standing().tolist() == [0]


def test_noise_has_corners_and_everything_between() -> None:
    model = constant()
    Noise(model, eps=4, draws=4)(*gray(1, 32))
    offsets = [set((image.int() - 128).flatten().tolist()) for image in model.seen]
    assert offsets == [{0}, set(range(-4, 5)), {-4, 4}, set(range(-4, 5)), {-4, 4}]


def test_squares_lie_inside_the_image_and_reach_every_place() -> None:
    for side in (1, 3, 8):
        masks = _squares(1000, side, 8, 10, torch.Generator().manual_seed(0))
        assert (masks.flatten(1).sum(1) == side**2).all()
        assert masks.any(dim=0).all()


def test_squares_shrink_on_autoattacks_schedule() -> None:
    """p_selection of its square.py, at a number of 10,000 queries."""
    halved = {10: 0, 11: 1, 50: 1, 51: 2, 500: 3, 1000: 4, 2000: 5, 4000: 6, 4001: 7, 6001: 8, 8000: 8, 8001: 9}
    for query, times in halved.items():
        side = round((0.8 / 2**times * 224 * 224) ** 0.5)
        assert Square(planted())._side(query / 10_000, 224, 224) == max(side, 1), query


def test_squares_move_by_the_whole_bound_and_start_from_stripes() -> None:
    model = constant()
    Square(model, eps=4, queries=40)(*gray(1))
    _, stripes, *rest = (images.int() - 128 for images in model.seen)
    assert (stripes == stripes[:, :, :1]).all()
    assert stripes.unique().tolist() == [-4, 4]
    assert all(set(image.unique().tolist()) <= {-4, 4} for image in rest)
    assert all((image != stripes).any() for image in rest[:3])
    colors = {tuple(color) for image in rest for color in image.movedim(1, -1)[(image != stripes).any(dim=1)].tolist()}
    assert len(colors) > 2  # each color has a sign of its own


def test_transfer_hands_on_the_source_images() -> None:
    source = Square(planted(), queries=50)
    levels, labels = gray()
    attack = Transfer(constant(), source)
    assert attack.name == 'transfer-planted'
    assert attack.cost() == Cost(51, 0)
    expected = source(levels, labels, torch.Generator().manual_seed(3))
    assert torch.equal(attack(levels, labels, torch.Generator().manual_seed(3)), expected)
