"""Smoothness added by the optimizer is Eq. 10 as `P2BETask` has it, through everything that a training script does."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from stepping import NETWORK, Tiny, create, group_of, set_gradients
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import Tensor, nn

from timm_p2be.losses import smoothness_gradient, smoothness_loss
from timm_p2be.stem import find_embedding
from timm_p2be.task import P2BETask

LAMBDA = 30.0  # large enough to turn the table's gradient round


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def table(model: nn.Module) -> Tensor:
    return find_embedding(model).weight


def assert_close(one: nn.Module, other: nn.Module, apart_from: nn.Module) -> None:
    """The two agree, and are far from where `apart_from` ends."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-6)
    assert (table(one) - table(apart_from)).abs().max() > 1e-2


def train(
    model: Tiny, name: str, in_task: float = 0.0, reduction: str = 'mean', accumulated: int = 1, scaled: bool = False
) -> Callable[..., Tiny]:
    """Return a function that trains a copy of `model` for ten updates; its arguments go to the optimizer."""

    def updates(**settings) -> Tiny:
        torch.manual_seed(1)
        copied = copy.deepcopy(model)
        task = P2BETask(copied, alpha=0.0, smoothness=in_task, reduction=reduction, num_views=1)
        optimizer = create(copied, name, embedding_lr=1e-2, **settings)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**8, enabled=scaled)
        for _ in range(10):
            for _ in range(accumulated):
                loss = task(torch.rand(4, 3, 8, 8), torch.randint(0, 5, (4,)))['loss']
                scaler.scale(loss / accumulated).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return copied

    return updates


@pytest.mark.parametrize('name', NETWORK)
@pytest.mark.parametrize(
    'how',
    [{}, {'reduction': 'sum'}, {'accumulated': 3}, {'scaled': True}],
    ids=['plain', 'sum', 'accumulated', 'scaled'],
)
def test_it_is_the_term_of_the_task(model, name, how):
    in_optimizer = {'smoothness': LAMBDA, 'smoothness_reduction': how.get('reduction', 'mean')}
    ours = train(model, name, **how)(**in_optimizer)
    assert_close(ours, train(model, name, in_task=LAMBDA, **how)(), apart_from=train(model, name, **how)())
    assert_close(train(model, name, **how)(**in_optimizer, foreach=True), ours, apart_from=model)


def one_step(model: Tiny, settings: dict, gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the table after a step with random gradients, the table's put through `gradient`."""
    model = copy.deepcopy(model)
    optimizer = create(model, embedding_lr=1e-2, **settings)
    set_gradients(list(model.parameters()), 0)
    table(model).grad = gradient(table(model).grad)
    before = table(model).grad.clone()
    optimizer.step()
    assert torch.equal(table(model).grad, before)  # as the loss left it
    return table(model).detach()


def test_clipping_comes_before_it(model):
    """timm clips what the loss gave; there the term is not part of the norm."""
    images, labels = torch.rand(4, 3, 8, 8), torch.randint(0, 5, (4,))
    clipped, expected = copy.deepcopy(model), copy.deepcopy(model)
    loss = nn.functional.cross_entropy(clipped(images), labels)
    NativeScaler('cpu')(loss, create(clipped, smoothness=LAMBDA), clip_grad=1e-3, parameters=clipped.parameters())
    nn.functional.cross_entropy(expected(images), labels).backward()
    dispatch_clip_grad(expected.parameters(), 1e-3)
    table(expected).grad.add_(smoothness_gradient(table(expected)), alpha=LAMBDA)
    create(expected).step()
    torch.testing.assert_close(clipped.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-7)


def test_closure_gives_the_gradient_first(model):
    twin = copy.deepcopy(model)
    images = torch.rand(2, 3, 8, 8)

    def closure(model: Tiny, term: float) -> Tensor:
        loss = model(images).square().sum() + term * smoothness_loss(table(model))
        loss.backward()
        return loss

    create(model, embedding_lr=0.1, smoothness=LAMBDA).step(partial(closure, model, 0.0))
    create(twin, embedding_lr=0.1).step(partial(closure, twin, LAMBDA))
    torch.testing.assert_close(table(model), table(twin))


@pytest.mark.parametrize(('saved', 'created'), [(LAMBDA, 0.0), (0.0, LAMBDA)])
def test_a_checkpoint_does_not_bring_it(model, saved, created):
    """A run begun by `timm-p2be train`, whose loss has the term, goes on in timm's script, whose loss has not."""
    state = create(model, smoothness=saved).state_dict()
    optimizer = create(model, smoothness=created)
    optimizer.load_state_dict(state)
    start = table(model).detach().clone()
    table(model).grad = torch.zeros_like(start)
    group_of(optimizer, table(model))['weight_decay'] = 0.0
    optimizer.step()
    assert torch.equal(table(model), start) == (created == 0.0)


@pytest.mark.parametrize('encoding', ['p2be', 'thermometer'])
def test_without_a_trained_table_it_does_nothing(encoding):
    """So that a recipe serves every encoding."""
    model = Tiny(encoding)
    if encoding == 'p2be':
        find_embedding(model).freeze()
    twin = copy.deepcopy(model)
    for each, optimizer in ((model, create(model, smoothness=LAMBDA)), (twin, create(twin))):
        set_gradients(list(each.parameters()), 0)
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
