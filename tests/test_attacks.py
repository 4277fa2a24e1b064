"""What all attacks keep to: any timm model, the bound, the generator, and what bad input is told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from planted import random_levels
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import timm_p2be
from timm_p2be.robustness.attacks import APGD, DGA, LSPGA, PGD, Attack, Noise, Square, Transfer
from timm_p2be.robustness.attacks.attack import margin
from timm_p2be.robustness.attacks.climbing import Climber
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.judge import is_correct
from timm_p2be.robustness.pixel_model import PixelModel

ATTACKS: dict[str, Callable[[nn.Module, Any], Attack]] = {
    'noise': lambda model, eps: Noise(model, eps, draws=4),
    'transfer': lambda model, eps: Transfer(model, PGD(model, eps, steps=3, stop=False)),
    'fgsm': lambda model, eps: PGD(model, eps, steps=1),
    'pgd': lambda model, eps: PGD(model, eps, steps=6),
    'pgd margin': lambda model, eps: PGD(model, eps, steps=3, loss='margin', restarts=2),
    'apgd of one step, for curves': lambda model, eps: APGD(model, eps, steps=1),
    'apgd margin': lambda model, eps: APGD(model, eps, steps=3, loss='margin', restarts=2),
    'apgd target': lambda model, eps: APGD(model, eps, steps=3, loss='target', restarts=2),
    'dga': lambda model, eps: DGA(model, eps, steps=4),
    'lspga': lambda model, eps: LSPGA(model, eps),
    'lspga sharpen': lambda model, eps: LSPGA(model, eps, 10, 0.3, 1.02, 'sharpen'),
    'square': lambda model, eps: Square(model, eps, queries=20),
}
each_attack = pytest.mark.parametrize('build', ATTACKS.values(), ids=ATTACKS)


def _plain(name: str) -> nn.Module:
    """A network of timm, nothing round it."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5)


@each_attack
@pytest.mark.parametrize('name', ['wrn10_2_p2be', 'resnet10t'])
def test_a_plain_model_is_attacked_as_a_wrapped_one(name: str, build: Callable[[nn.Module, int], Attack]) -> None:
    model, levels = _plain(name), random_levels()
    wrapped = PixelModel(copy.deepcopy(model))  # its own mean and std, those of ImageNet for resnet10t
    labels = wrapped(levels).argmax(1)
    before, clean = {key: value.clone() for key, value in model.state_dict().items()}, levels.clone()
    attack = build(model, 8)
    attempt = attack(levels, labels)
    assert torch.equal(attempt, build(wrapped, 8)(levels, labels))
    assert (attempt.dtype, attempt.shape, attempt.requires_grad) == (torch.uint8, levels.shape, False)
    assert 0 < (attempt.int() - levels.int()).abs().max() <= 8
    assert torch.equal(levels, clean)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if attack.cost().backwards:
        assert cross_entropy(wrapped(attempt), labels) > cross_entropy(wrapped(levels), labels) + 1e-3


@each_attack
@pytest.mark.parametrize('eps', [0, 255])
def test_bound(build: Callable[[nn.Module, int], Attack], eps: int) -> None:
    model, levels = PixelModel(_plain('wrn10_2_p2be')), random_levels()
    attempt = build(model, eps)(levels, model(levels).argmax(1))
    change = int((attempt.int() - levels.int()).abs().max())
    assert change <= eps
    assert (change > 0) == (eps > 0)


@each_attack
def test_the_generator_decides_everything(build: Callable[[nn.Module, int], Attack]) -> None:
    model, levels = PixelModel(_plain('wrn10_2_p2be')), random_levels(4)
    labels = model(levels).argmax(1)
    attack = build(model, 1)
    first, again, other = (attack(levels, labels, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(attack(levels, labels), attack(levels, labels, torch.Generator().manual_seed(0)))
    if not isinstance(attack, Climber | Transfer):  # begins at the clean image, and fells it from there
        assert not torch.equal(first, other)


def test_an_attack_follows_the_training_of_its_model() -> None:
    """An optimizer's step reaches it: it is built once and used in every step of adversarial training."""
    for model in (_plain('wrn10_2_p2be'), PixelModel(_plain('wrn10_2_p2be'))):
        model.train()
        attack, levels = LSPGA(model), random_levels()
        labels = torch.tensor([0, 1])
        before = attack(levels, labels)
        assert model.training
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()
        after = attack(levels, labels)
        assert not torch.equal(after, before)
        assert torch.equal(after, LSPGA(copy.deepcopy(model))(levels, labels))
        assert torch.equal(CodeModel(model).table(), timm_p2be.find_embedding(model).codes())


def test_margin_is_negative_exactly_where_argmax_is_wrong() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 0.0], [2.0, 2.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 2, 0, 1])
    margins = margin(logits, labels)
    assert margins.tolist() == pytest.approx([1, -1, 0, 0])
    assert (margins < 0).tolist() == (logits.argmax(1) != labels).tolist() == [False, True, False, True]
    margins[3].backward()
    assert logits.grad[3].tolist() == [-1, 1, 0]  # a lost tie still has a slope


@pytest.mark.parametrize(
    ('attack', 'arguments', 'words'),
    [
        *((Noise, {'eps': eps}, ('eps=', '8/255 is eps=8')) for eps in (-1, 256, 8 / 255, True)),
        (Noise, {'draws': 0}, ('draws=0', 'at least 1')),
        (PGD, {'steps': 0}, ('steps=0', 'at least 1')),
        (PGD, {'step_size': -1.0}, ('step_size=-1.0', 'positive')),
        (PGD, {'loss': 'dlr'}, ("'dlr'", "['ce', 'margin', 'target']")),
        (PGD, {'surrogate': 'ramp'}, ("'ramp' does not fit", "'kernel'")),
        (DGA, {'steps': 0}, ('steps=0', 'at least 1')),
        (DGA, {'targets': -1}, ('targets=-1', 'at least 0')),
        (LSPGA, {'restarts': 0}, ('restarts=0', 'at least 1')),
        (LSPGA, {'step_size': 0.0}, ('step_size=0.0', 'positive')),
        (LSPGA, {'anneal_rate': 0.8}, ('anneal_rate=0.8', 'at least 1')),
        (LSPGA, {'anneal': 'up'}, ("'up'", "['flatten', 'sharpen']")),
        (Square, {'queries': True}, ('queries=True', 'at least 2')),
    ],
)  # fmt: skip
def test_bad_arguments(attack: Callable[..., Attack], arguments: dict[str, Any], words: tuple[str, str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are looked for below
        attack(_plain('wrn10_2_p2be'), **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@each_attack
@pytest.mark.parametrize('part', ['table', 'fc.weight'])
def test_a_network_without_any_gradient_stands(part: str, build: Callable[[nn.Module, int], Attack]) -> None:
    model, levels = PixelModel(_plain('wrn10_2_p2be')), random_levels()
    with torch.no_grad():
        if part == 'table':
            embedding = timm_p2be.find_embedding(model)
            embedding.weight.copy_(embedding.weight[:1].expand_as(embedding.weight))  # all levels have one code
        else:
            model.model.get_parameter(part).zero_()
    labels = model(levels).argmax(1)
    assert is_correct(model, build(model, 8)(levels, labels), labels).all()


@pytest.mark.parametrize(
    ('images', 'labels', 'words'),
    [
        (torch.rand(2, 3, 8, 8), [0, 1], 'uint8 levels'),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1], 'uint8 levels'),
        (random_levels(), [0, 5], r'from 0 to 5, .* 5 classes \(0 to 4\)'),
        (random_levels(), [-1, 2], 'labels from -1 to 2, '),
    ],
)
def test_bad_batches(images: Tensor, labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DGA(_plain('wrn10_2_p2be'))(images, torch.tensor(labels))


def test_a_model_that_is_no_classifier_of_known_normalization_is_refused() -> None:
    for model, words in (
        (nn.Conv2d(3, 3, 1), '0 classes'),
        (timm.create_model('resnet10t', num_classes=0), '0 classes'),
        (timm_p2be.convert(timm.create_model('resnet10t', in_chans=1, num_classes=5), 'p2be'), 'in_chans=3'),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            LSPGA(model)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match='of std: positive'):
        PixelModel(timm.create_model('resnet10t'), std=(1, 0, 1))


def test_a_diverged_network_is_refused_instead_of_counted_as_fallen() -> None:
    model = PixelModel(_plain('wrn10_2_p2be'))
    with torch.no_grad():
        model.model.get_parameter('fc.bias')[1] = torch.nan
    with pytest.raises(ValueError, match='wrn10_2_p2be gives logits that are not finite'):
        is_correct(model, random_levels(), torch.tensor([0, 1]))
