"""The optimizers inside what timm's training script does: names, flags, scaling, clipping, checkpoints."""

import argparse
import copy

import pytest
import torch
from stepping import Tiny, assert_same, create, group_of
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.utils import NativeScaler, ParseKwargs, dispatch_clip_grad

import timm_p2be.optim
from timm_p2be.stem import find_embedding


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def test_layer_decay_does_not_scale_the_table(model):
    optimizer = create(model, layer_decay=0.5)
    table = group_of(optimizer, find_embedding(model).weight)
    assert 'lr_scale' not in table
    assert group_of(optimizer, model.stem.weight)['lr_scale'] == 0.5
    create_scheduler_v2(optimizer, 'cosine', num_epochs=10)[0].step(0)
    assert timm_p2be.optim.learning_rates(optimizer) == {'network': 0.1, 'embedding': 1e-4}


def test_scaler_skips_overflow_and_then_matches_no_scaler(model):
    twin, before = copy.deepcopy(model), copy.deepcopy(model)
    images = torch.rand(4, 3, 8, 8)
    optimizer, scaler = create(model), torch.amp.GradScaler('cpu', init_scale=2.0**8)
    scaler.scale(model.eval()(images).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert_same(model, before)
    assert scaler.get_scale() == 2.0**7
    assert not any(optimizer.state.values())

    scaler.scale(model(images).square().sum()).backward()
    scaler.step(optimizer)
    twin.eval()(images).square().sum().backward()
    create(twin).step()
    assert_same(model, twin)


def test_timm_scaler_unscales_and_clips_the_table_too(model):
    twin = copy.deepcopy(model)
    images = torch.rand(4, 3, 8, 8)
    model(images).square().sum().backward()
    free = find_embedding(model).weight.grad.clone()
    model.zero_grad()
    NativeScaler('cpu')(model(images).square().sum(), create(model), clip_grad=1e-3, parameters=model.parameters())
    twin(images)
    twin(images).square().sum().backward()
    dispatch_clip_grad(twin.parameters(), 1e-3)
    create(twin).step()
    assert find_embedding(model).weight.grad.norm() < 0.9 * free.norm()
    assert_same(model, twin)


def test_flags_of_timms_training_script(model):
    parser = argparse.ArgumentParser()
    parser.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs)
    flags = ['embedding_lr=1e-3', 'embedding_betas=(0.9,0.99)', 'embedding_sched=constant', 'nesterov=False']
    args = parser.parse_args(['--opt-kwargs', *flags], argparse.Namespace(opt='sgdp2be', lr=0.2, momentum=0.8))
    args.weight_decay, args.opt_eps, args.opt_betas = 1e-4, 1e-6, (0.5, 0.5)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    table = group_of(optimizer, find_embedding(model).weight)
    network = group_of(optimizer, model.fc.weight)
    assert (table['lr'], table['betas'], table['eps']) == (1e-3, (0.9, 0.99), 1e-8)
    assert (network['lr'], network['momentum'], network['nesterov']) == (0.2, 0.8, False)
    assert optimizer.defaults['embedding_sched'] == 'constant'
