"""Certificates: bounds hold, those of the stem are exact, and nothing that is certified falls."""

import itertools
from typing import Any

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from stems import random_levels
from torch import Tensor, nn

import timm_p2be
from timm_p2be import EncodedConv2d
from timm_p2be.robustness.attacks import APGD, DGA, LSPGA, Attack, Square
from timm_p2be.robustness.attacks.judge import attack_batch, seeded
from timm_p2be.robustness.certify import IBPTask, IntervalNetwork, certified, margin_bounds, stem_bounds
from timm_p2be.robustness.pixel_model import PixelModel


def _neighbor(levels: Tensor, eps: int, seed: int) -> Tensor:
    change = torch.randint(-eps, eps + 1, levels.shape, generator=torch.Generator().manual_seed(seed))
    return (levels.int() + change).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(('encoding', 'eps'), [('p2be', 2), ('thermometer', 3), ('onehot', 1)])
def test_bounds_of_the_stem_are_attained(encoding: str, eps: int) -> None:
    torch.manual_seed(1)
    stem = EncodedConv2d(1, 3, (1, 2), encoding, num_bits=8, bias=True)
    levels = torch.tensor([[[[1, 254]]], [[[100, 7]]]], dtype=torch.uint8)
    lower, upper = stem_bounds(stem, levels, eps)
    for image, low, high in zip(levels, lower, upper, strict=True):
        windows = [range(max(x - eps, 0), min(x + eps, 255) + 1) for x in image.flatten().tolist()]
        every = torch.tensor(list(itertools.product(*windows)), dtype=torch.uint8).view(-1, 1, 1, 2)
        features = stem(every)
        torch.testing.assert_close(low, features.amin(dim=0))
        torch.testing.assert_close(high, features.amax(dim=0))


@pytest.mark.parametrize('padding', [1, 'same'])
def test_pixels_outside_the_image_add_nothing(padding: int | str) -> None:
    stem = EncodedConv2d(3, 4, 3, stride=2, padding=padding)
    for eps in (0, 255):
        lower, upper = stem_bounds(stem, random_levels(1, 3, 7, 7), eps)
        assert (
            (lower <= stem(random_levels(1, 3, 7, 7)) + 1e-5) & (stem(random_levels(1, 3, 7, 7)) <= upper + 1e-5)
        ).all()
        assert torch.equal(lower, upper) == (eps == 0)


# pre-activation with timm's fused norms; concatenation; shortcuts; a stem of several layers
@pytest.mark.parametrize(
    ('name', 'shallow'),
    [
        ('wrn10_2_p2be', {}),
        ('densenetbc100_12_thermometer', {'depth': 10}),
        ('resnet18_onehot', {'layers': (1, 1, 1, 1)}),
        ('resnet10t', {}),
    ],
)
def test_bounds_hold(name: str, shallow: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = PixelModel(timm.create_model(name, num_classes=5, **shallow)).double()
    levels, eps = random_levels(2, 3, 32, 32), 1
    with torch.no_grad():
        bounds = IntervalNetwork(model).propagate(levels, eps)
        torch.testing.assert_close(bounds.logits.center.float(), model(levels))
        for seed in range(10):
            other = _neighbor(levels, eps, seed)
            logits = model.model(other if model.encoding else model.normalize(other.double() / 255))
            slack = 1e-9 * bounds.logits.upper.abs()
            assert ((bounds.logits.lower - slack <= logits) & (logits <= bounds.logits.upper + slack)).all()


def test_bounds_of_one_layer_are_attained() -> None:
    """A convolution of pixel values, then a normalization with slopes of both signs: monotone in every value."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    body = nn.Sequential(nn.Conv2d(3, 4, 2), norm, nn.Flatten())
    model, levels, eps = PixelModel(nn.Sequential(body, nn.Linear(16, 3)).double()), random_levels(1, 3, 3, 3), 40
    low, high = (levels.double() - eps).clamp(min=0) / 255, (levels.double() + eps).clamp(max=255) / 255
    bounds = IntervalNetwork(model).propagate(levels, eps).features
    for number in range(16):
        image = (levels.double() / 255).requires_grad_()
        (slope,) = torch.autograd.grad(body(image)[0, number], image)
        torch.testing.assert_close(body(torch.where(slope > 0, high, low))[0, number], bounds.upper[0, number])
        torch.testing.assert_close(body(torch.where(slope > 0, low, high))[0, number], bounds.lower[0, number])


def _small(encoding: str | None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    model.num_classes = 10  # type: ignore[assignment]
    cfg = {'first_conv': '0', 'mean': (0.0,) * 3, 'std': (1.0,) * 3, 'input_size': (3, 32, 32)}
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    return timm_p2be.convert(model, encoding, init='thermometer' if encoding == 'p2be' else None) if encoding else model


def _digits(count: int = 1200) -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8x8 pixels, each four times as large."""
    images, labels = load_digits(return_X_y=True)
    levels = (torch.from_numpy(images).view(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    return levels.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1), torch.from_numpy(labels)


def _train(model: nn.Module, eps: int, updates: int) -> dict[str, Tensor]:
    images, labels = _digits()
    task = IBPTask(model, eps, warmup=updates // 2)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    task.train()
    for number in torch.randperm(1200, generator=torch.Generator().manual_seed(0)).repeat(9).split(100)[:updates]:
        parts = task(images[number] / 255, labels[number])
        optimizer.zero_grad()
        parts['loss'].backward()
        optimizer.step()
    return parts


@pytest.mark.parametrize('encoding', [None, pytest.param('p2be', marks=pytest.mark.slow)])
def test_nothing_certified_falls(encoding: str | None) -> None:
    model, eps = _small(encoding), 2
    _train(model, eps, updates=60)
    images, labels = (part[1200:1230] for part in _digits())
    pixel_model = PixelModel(model)
    proven = certified(model, images, labels, eps)
    assert proven.float().mean() > 0.3
    assert torch.equal(certified(model, images, labels, 0), pixel_model(images).argmax(dim=1) == labels)
    assert not (certified(model, images, labels, eps + 1) & ~proven).any()
    attacks: list[Attack] = [LSPGA(pixel_model, eps), DGA(pixel_model, eps, steps=5), Square(pixel_model, eps, 100)]
    attacks.append(APGD(pixel_model, eps, steps=10, loss='margin'))
    for attack in attacks:
        _, fell = attack_batch(pixel_model, attack, images[proven], labels[proven], eps, seeded(0))
        assert not fell.any(), attack.name


def test_training_reaches_the_table() -> None:
    model = _small('p2be')
    weight = timm_p2be.find_embedding(model).weight
    plain = IBPTask(model, eps=2, kappa=0.0)
    certain = IBPTask(model, eps=2, kappa=1.0).eval()
    images, labels = _digits()
    for task in (plain.eval(), certain):
        model.zero_grad()
        parts = task(images[:20] / 255, labels[:20])
        parts['loss'].backward()
        assert weight.grad.abs().sum() > 0
    assert parts['worst'] > parts['ce']
    torch.testing.assert_close(parts['loss'].detach(), parts['worst'])


def test_intervals_and_their_weight_grow_in_warm_up() -> None:
    task, worst = IBPTask(_small('p2be'), eps=8, kappa=0.5, warmup=4).train(), []
    images, labels = _digits()
    with torch.no_grad():
        for weight in (0.125, 0.25, 0.375, 0.5, 0.5, 0.5):
            parts = task(images[:20] / 255, labels[:20])
            torch.testing.assert_close(parts['loss'], (1 - weight) * parts['ce'] + weight * parts['worst'])
            worst.append(float(parts['worst']))
    assert worst[0] < worst[1] < worst[2] < worst[3] == worst[4] == worst[5]


def test_batch_normalization_takes_statistics_of_the_images() -> None:
    model = timm.create_model('wrn10_2_p2be', num_classes=3).train()
    levels = random_levels(4, 3, 32, 32)
    expected = model(levels)
    running = model.norm.running_mean.clone()
    bounds = IntervalNetwork(_in_training(model)).propagate(levels, 0)
    torch.testing.assert_close(bounds.logits.center, expected)
    torch.testing.assert_close(bounds.logits.upper, expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(running, model.norm.running_mean)


def _in_training(model: nn.Module) -> PixelModel:
    pixel_model = PixelModel(model)
    model.train()
    return pixel_model


def test_the_margin_is_tighter_than_the_difference_of_bounds() -> None:
    model, labels = PixelModel(_small('thermometer')), torch.tensor([3, 1])
    with torch.no_grad():
        bounds = IntervalNetwork(model).propagate(random_levels(2, 3, 32, 32), 1)
        least = margin_bounds(bounds, labels)
    lower = bounds.logits.lower.gather(1, labels.unsqueeze(1))
    own = torch.nn.functional.one_hot(labels, 10).bool()
    assert (least[~own] > (lower - bounds.logits.upper)[~own]).all()
    torch.testing.assert_close(least[own], torch.zeros(2))


LABELS = torch.zeros(2, dtype=torch.int64)


def _bounds(name: str, **kwargs: Any) -> Any:
    return IntervalNetwork(PixelModel(timm.create_model(name, **kwargs))).propagate(random_levels(2, 3, 32, 32), 1)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: _bounds('convnext_atto'), ('permute', 'Conv2d')),
        (lambda: _bounds('resnet10t', act_layer='silu'), ('SiLU', 'ReLU')),
        (
            lambda: certified(timm_p2be.fold(_small('p2be')), random_levels(2, 3, 32, 32), LABELS),
            ('folded', 'folded from'),
        ),
        (lambda: certified(_small(None), random_levels(2, 3, 32, 32), LABELS, eps=256), ('eps=256', '0 to 255')),
        (
            lambda: certified(_small(None), random_levels(2, 3, 32, 32), torch.tensor([0, 10])),
            ('0 to 10', '10 classes'),
        ),
        (lambda: certified(_small(None), random_levels(2, 3, 32, 32).float(), LABELS), ('float32', 'uint8')),
        (lambda: IBPTask(_small(None), eps=0), ('eps=0', 'at least 1')),
        (lambda: IBPTask(_small(None), kappa=1.5), ('kappa=1.5', '0 to 1')),
        (lambda: IBPTask(_small(None)).prepare_distributed(), ('DistributedDataParallel', 'one process')),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert all(word in str(caught.value) for word in words), caught.value
