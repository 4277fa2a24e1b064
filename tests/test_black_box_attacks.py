"""Attacks without gradients, on models whose weakness is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timm_p2be.robustness.attacks.attack import KINDS, Attack, Cost
from timm_p2be.robustness.attacks.attempts import Attempts, margins
from timm_p2be.robustness.attacks.coordinate import CoordinateSearch
from timm_p2be.robustness.attacks.hop_skip_jump import HopSkipJump
from timm_p2be.robustness.attacks.noise import Noise
from timm_p2be.robustness.attacks.square import Square, _squares
from timm_p2be.robustness.attacks.transfer import Transfer
from timm_p2be.robustness.pixel_model import PixelModel

Build = Callable[..., Attack]


class Counted(PixelModel):
    """A function from images in [0, 1] to 3 logits as a pixel model that counts the images it is asked about."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = 'planted') -> None:
        network = nn.Linear(1, 3)
        network.num_classes = 3  # type: ignore[assignment]
        super().__init__(network, mean=(0, 0, 0), std=(1, 1, 1), name=name)
        self.function = function
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.function(images.float() / 255 if images.dtype == torch.uint8 else images)


def planted(threshold: float = 3.0) -> Counted:
    """Class 1 from `threshold` levels above mid-gray in the mean of the left half's red, class 0 below."""

    def logits(images: Tensor) -> Tensor:
        height = (images[:, 0, :, : images.shape[3] // 2].mean(dim=(1, 2)) * 255 - 128 - threshold) / 10
        return torch.stack([-height, height, height - 1], dim=1)

    return Counted(logits)


def constant() -> Counted:
    return Counted(lambda images: images.new_tensor([1.0, 0.0, 0.0]).expand(len(images), 3))


def one_level() -> Counted:
    """Wrong only where one value is 3 levels above mid-gray: nothing that +-eps or a monotone search finds."""

    def logits(images: Tensor) -> Tensor:
        away = (images[:, 1, 2, 5] * 255 - 131).abs()
        hit = torch.where(away < 0.5, 0.0, 1.0)
        return torch.stack([hit, torch.full_like(hit, 0.5), torch.zeros_like(hit)], dim=1)

    return Counted(logits)


def gray(count: int = 4, size: int = 8, level: int = 128) -> tuple[Tensor, Tensor]:
    return torch.full((count, 3, size, size), level, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)


def transfer(model: PixelModel, eps: int = 8) -> Transfer:
    return Transfer(model, eps, Square(planted(), eps, queries=100))


ATTACKS = [
    pytest.param(lambda model, eps=8: Noise(model, eps, draws=20), id='noise'),
    pytest.param(transfer, id='transfer'),
    pytest.param(lambda model, eps=8: CoordinateSearch(model, eps, queries=300, block=4), id='coordinate'),
    pytest.param(lambda model, eps=8: Square(model, eps, queries=100), id='square'),
    pytest.param(lambda model, eps=8: HopSkipJump(model, eps, queries=600), id='hop-skip-jump'),
]
SEARCHES = ATTACKS[2:]


def distance(attempt: Tensor, levels: Tensor) -> int:
    return int((attempt.int() - levels.int()).abs().max())


@pytest.mark.parametrize('build', ATTACKS)
def test_images_are_levels_within_the_bound(build: Build) -> None:
    levels = torch.randint(0, 256, (4, 3, 8, 10), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    levels[0], levels[1] = 0, 255
    model = planted(60.0)
    attack = build(model, 5)
    labels = model(levels).argmax(dim=1)
    clean = levels.clone()
    attempt = attack(levels, labels)
    assert attempt.dtype == torch.uint8
    assert attempt.shape == levels.shape
    assert torch.equal(levels, clean)
    assert distance(attempt, levels) <= 5
    assert attack.kind in KINDS
    assert not attempt.requires_grad
    assert not attempt.is_inference()


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
    assert model.asked == 4


@pytest.mark.parametrize('build', ATTACKS)
def test_the_generator_decides_everything(build: Build) -> None:
    levels, labels = gray(8)
    state = np.random.get_state(legacy=False)['state']['key'].tolist()
    first, again, other = (build(planted())(levels, labels, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    default = build(planted())(levels, labels)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(default, build(planted())(levels, labels, torch.Generator().manual_seed(0)))
    assert np.random.get_state(legacy=False)['state']['key'].tolist() == state


@pytest.mark.parametrize('build', ATTACKS)
def test_an_image_costs_at_most_what_is_stated(build: Build) -> None:
    model = planted(8.5)
    attack = build(model)
    levels, labels = gray(2)
    attack(levels, labels)
    stated = 1 if attack.kind == 'transfer' else attack.cost().forwards
    assert 1 * 2 <= model.asked <= stated * 2
    if attack.kind == 'score':
        assert model.asked == stated * 2
    assert attack.cost().backwards == 0


@pytest.mark.parametrize('build', SEARCHES)
def test_fallen_images_cost_nothing_more(build: Build) -> None:
    model = planted()
    levels, labels = gray()
    build(model)(levels, labels)
    assert model.asked < 4 * build(model).cost().forwards / 2


@pytest.mark.parametrize('build', ATTACKS)
def test_no_room_gives_the_clean_images(build: Build) -> None:
    levels, labels = gray()
    assert torch.equal(build(planted(), 0)(levels, labels), levels)


@pytest.mark.parametrize('build', ATTACKS)
def test_a_constant_model_stands_and_an_empty_batch_passes(build: Build) -> None:
    levels, labels = gray()
    attempt = build(constant())(levels, labels)
    assert (margins(constant(), attempt, labels) > 0).all()
    assert distance(attempt, levels) <= 8
    assert build(planted())(levels[:0], labels[:0]).shape == (0, 3, 8, 8)


def test_a_score_search_returns_its_lowest_margin() -> None:
    levels, labels = gray(2)
    attempt = CoordinateSearch(planted(8.5), queries=2000)(levels, labels)
    assert torch.allclose(margins(planted(8.5), attempt, labels), torch.tensor(0.1), atol=1e-4)  # all 8 levels up


def test_coordinate_search_tries_every_legal_level() -> None:
    levels, labels = gray(2)
    attempt = CoordinateSearch(one_level(), queries=8000)(levels, labels)
    assert (margins(one_level(), attempt, labels) < 0).all()
    attempt = Square(one_level(), queries=1000)(levels, labels)
    assert (margins(one_level(), attempt, labels) >= 0).all()


def test_coordinate_search_halves_its_blocks_on_any_size() -> None:
    model = planted(8.5)
    levels = torch.full((1, 3, 5, 7), 128, dtype=torch.uint8)
    attempt = CoordinateSearch(model, queries=4000, block=4)(levels, torch.zeros(1, dtype=torch.int64))
    assert (attempt[0, 0, :, :3] == 136).all()


def test_batches_of_candidates_keep_to_the_cap() -> None:
    sizes = []
    function = planted(8.5).function

    def logits(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return function(images)

    model = Counted(logits)
    levels, labels = gray(5)
    for build in (CoordinateSearch, Square, HopSkipJump):
        build(model, queries=50, batch_size=3)(levels, labels)
    assert max(sizes) == 3


def test_a_tie_counts_as_argmax_decides_it() -> None:
    tied = Counted(lambda images: images.new_zeros(len(images), 3))
    levels, _ = gray(2)
    assert (margins(tied, levels, torch.tensor([0, 1])) < 0).tolist() == [False, True]
    assert Attempts(tied, levels, torch.tensor([0, 1])).standing().tolist() == [0]


def test_noise_has_corners_and_everything_between() -> None:
    images = []

    def logits(batch: Tensor) -> Tensor:
        images.append(batch.clone())
        return batch.new_tensor([[1.0, 0.0, 0.0]]).expand(len(batch), 3)

    model = Counted(logits)
    levels, labels = gray(1, 32)
    Noise(model, eps=4, draws=4)(levels, labels)
    offsets = [set((image * 255 - 128).round().int().flatten().tolist()) for image in images]
    assert offsets == [{0}, set(range(-4, 5)), {-4, 4}, set(range(-4, 5)), {-4, 4}]


@pytest.mark.parametrize('side', [1, 3, 8])
def test_squares_lie_inside_the_image_and_reach_every_place(side: int) -> None:
    masks = _squares(1000, side, 8, 10, torch.Generator().manual_seed(0))
    assert (masks.flatten(1).sum(1) == side**2).all()
    assert masks.any(dim=0).all()


def test_square_agrees_with_art() -> None:
    """Equal success at an equal number of squares, on a random network whose images do not all fall."""
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    seeded = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=seeded) for shape in ((8, 3, 5, 5), (3, 8)))

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return torch.relu(nn.functional.conv2d(images, first, stride=2)).mean(dim=(2, 3)) @ second.T

    levels = torch.randint(0, 256, (200, 3, 16, 16), generator=seeded, dtype=torch.uint8)
    center = logits(levels / 255).mean(dim=0)
    model = Counted(lambda images: logits(images) - center)
    labels = model(levels).argmax(dim=1)
    pixels = levels.numpy().astype(np.float32) / 255
    estimator = BlackBoxClassifierNeuralNetwork(
        lambda images: model(torch.from_numpy(images)).numpy(), pixels.shape[1:], 3, clip_values=(0.0, 1.0)
    )
    state = np.random.get_state()
    np.random.seed(0)
    theirs = SquareAttack(estimator, eps=4 / 255, max_iter=100, verbose=False).generate(pixels, labels.numpy())
    np.random.set_state(state)
    fooled_by_art = model(torch.from_numpy(theirs)).argmax(1) != labels
    fooled = margins(model, Square(model, eps=4, queries=102)(levels, labels), labels) < 0
    assert 0.15 < fooled.float().mean() < 0.85
    assert abs(fooled.float().mean() - fooled_by_art.float().mean()) < 0.1


def test_hop_skip_jump_starts_from_noise_without_another_class() -> None:
    model = planted()
    levels, labels = gray(1, level=128)
    attempt = HopSkipJump(model, queries=600)(levels, labels)
    assert margins(model, attempt, labels)[0] < 0


def test_transfer_hands_on_the_source_images() -> None:
    source = Square(planted(), queries=50)
    model = constant()
    levels, labels = gray()
    attack = Transfer(model, 8, source)
    assert attack.name == 'transfer-planted'
    assert attack.cost() == Cost(51, 0)
    expected = source(levels, labels, torch.Generator().manual_seed(3))
    assert torch.equal(attack(levels, labels, torch.Generator().manual_seed(3)), expected)
    with pytest.raises(ValueError, match='Build the source with eps=4'):
        Transfer(model, 4, source)


@pytest.mark.parametrize('kind', [Noise, CoordinateSearch, Square, HopSkipJump])
@pytest.mark.parametrize('eps', [-1, 256, 8 / 255, True])
def test_bounds_are_numbers_of_levels(kind: Callable[..., Attack], eps: object) -> None:
    with pytest.raises(ValueError, match='eps=8'):
        kind(planted(), eps)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: Noise(planted(), draws=0), 'draws=0'),
        (lambda: CoordinateSearch(planted(), queries=1), 'queries=1; .* at least 2'),
        (lambda: CoordinateSearch(planted(), block=6), 'block=6; .* power of 2'),
        (lambda: Square(planted(), queries=True), 'queries=True'),
        (lambda: Square(planted(), p_init=0), 'p_init=0'),
        (lambda: Square(planted(), batch_size=0), 'batch_size=0'),
        (lambda: HopSkipJump(planted(), queries=1), 'queries=1'),
    ],
)
def test_bad_arguments_say_what_is_allowed(build: Callable[[], Attack], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('build', ATTACKS)
def test_images_must_be_levels(build: Build) -> None:
    with pytest.raises(ValueError, match='uint8 levels'):
        build(planted())(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
