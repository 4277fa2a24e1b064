"""The optimizers' two rules against torch's, and which parameter gets which."""

import copy
import io
import pickle

import pytest
import torch
from stepping import NETWORK, Tiny, assert_same, create, group_of, run, set_gradients
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import nn

import timm_p2be.optim
from timm_p2be.encodings import EmbeddingParameter
from timm_p2be.stem import find_embedding


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


@pytest.mark.parametrize('foreach', [None, True])
@pytest.mark.parametrize(
    ('name', 'kwargs', 'torch_class'),
    [
        ('sgdp2be', {}, torch.optim.SGD),
        ('sgdp2be', {'nesterov': False, 'momentum': 0.0}, torch.optim.SGD),
        ('sgdp2be', {'nesterov': False, 'dampening': 0.3}, torch.optim.SGD),
        ('adamwp2be', {}, torch.optim.AdamW),
        ('adamwp2be', {'betas': (0.8, 0.9), 'eps': 1e-4}, torch.optim.AdamW),
    ],
)
def test_both_rules_equal_torch_bit_for_bit(model, name, kwargs, torch_class, foreach):
    twin = copy.deepcopy(model)
    # rates large enough for the table's decay to show: the paper's, 1 - 1e-4 * 1e-4, is 1 in float32
    optimizer = create(model, name, foreach=foreach, embedding_lr=0.1, embedding_weight_decay=0.1, **kwargs)

    settings = {**NETWORK[name], **kwargs}
    if name == 'sgdp2be':
        settings.setdefault('nesterov', True)
    decay = settings.pop('weight_decay')
    table = nn.Parameter(find_embedding(twin).weight.detach().clone())
    network = [p for p in twin.parameters() if not isinstance(p, EmbeddingParameter)]
    groups = [
        {'params': [p for p in network if p.ndim == 1], 'weight_decay': 0.0},
        {'params': [p for p in network if p.ndim > 1], 'weight_decay': decay},
    ]
    rules = [
        torch_class(groups, foreach=foreach, **settings),
        torch.optim.AdamW([table], 0.1, (0.999, 0.999), 1e-8, 0.1),
    ]
    ours = [p for p in model.parameters() if not isinstance(p, EmbeddingParameter)]
    for step in range(20):
        set_gradients([*ours, find_embedding(model).weight], step)
        set_gradients([*network, table], step)
        optimizer.step()
        for rule in rules:
            rule.step()
        for group in (g for o in (optimizer, *rules) for g in o.param_groups):
            group['lr'] *= 0.9
    assert torch.equal(find_embedding(model).weight, table)
    assert all(torch.equal(p, q) for p, q in zip(ours, network, strict=True))


def resumed(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Another one for equal parameters that loads the state from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = type(optimizer)(copy.deepcopy(optimizer.param_groups))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize('name', NETWORK)
@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer)), resumed])
def test_duplicated_optimizer_keeps_rules_and_state(model, name, duplicate):
    optimizer = create(model, name, smoothness=2.0) if duplicate is not resumed else create(model, name)
    run(model, optimizer, range(3))
    twin = duplicate(optimizer)
    ours, theirs = ([p for g in o.param_groups for p in g['params']] for o in (optimizer, twin))
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        twin.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_table_leaves_its_group(model):
    model = copy.deepcopy(model)  # which keeps the table's type
    optimizer = create(model, embedding_lr=3e-4, embedding_weight_decay=0.0)
    table = group_of(optimizer, find_embedding(model).weight)
    assert table == {
        'params': [find_embedding(model).weight],
        'embedding': True,
        'lr': 3e-4,
        'betas': (0.999, 0.999),
        'eps': 1e-8,
        'weight_decay': 0.0,
    }
    others = [g for g in optimizer.param_groups if g is not table]
    assert [g['weight_decay'] for g in others] == [0.0, 5e-4]
    assert all(g['lr'] == 0.1 and 'embedding' not in g and 'embedding_lr' not in g for g in others)


def test_params_may_be_groups_or_named_or_a_generator(model):
    table = find_embedding(model).weight
    for params, groups in (
        (model.named_parameters(), [5, 1]),
        (model.parameters(), [5, 1]),
        ([{'params': [table], 'lr': 7.0}, {'params': model.fc.parameters()}], [1, 2]),
    ):
        optimizer = timm_p2be.optim.SGDP2BE(params)
        assert [len(g['params']) for g in optimizer.param_groups] == groups
        assert group_of(optimizer, table)['embedding'] is True
        assert group_of(optimizer, table)['lr'] == 1e-4


def test_frozen_table_is_in_no_group_until_added(model):
    find_embedding(model).freeze()
    optimizer = timm_p2be.optim.SGDP2BE(model.parameters(), embedding_lr=5e-4)
    table = find_embedding(model).weight
    assert all(p is not table for g in optimizer.param_groups for p in g['params'])
    assert timm_p2be.optim.learning_rates(optimizer) == {'network': 0.1}
    table.requires_grad_(True)
    optimizer.add_param_group({'params': table})
    assert group_of(optimizer, table)['lr'] == 5e-4
    with pytest.raises(ValueError, match='more than one parameter group'):
        optimizer.add_param_group({'params': table})


def test_marked_group_spells_out_its_settings(model):
    table = find_embedding(model).weight
    groups = [{'params': model.fc.parameters()}, {'params': table, 'embedding': True, 'lr': 0.5, 'eps': 1e-3}]
    group = group_of(timm_p2be.optim.AdamWP2BE(groups), table)
    assert (group['lr'], group['eps'], group['weight_decay']) == (0.5, 1e-3, 1e-4)


def test_without_a_table_it_is_plain_sgd():
    model = Tiny('onehot')
    twin = copy.deepcopy(model)
    plain = create_optimizer_v2(twin, 'sgd', **NETWORK['sgdp2be'])
    assert_same(run(model, create(model), range(5)), run(twin, plain, range(5)))


def test_parameters_without_gradient_are_left_alone(model):
    before = copy.deepcopy(model)
    optimizer = create(model)
    set_gradients([model.fc.bias], 0)
    optimizer.step()
    assert not torch.equal(model.fc.bias, before.fc.bias)
    assert torch.equal(find_embedding(model).weight, find_embedding(before).weight)
    assert [p for p, state in optimizer.state.items() if state] == [model.fc.bias]


def test_checkpoint_of_another_freezing_is_refused(model):
    saved = create(model).state_dict()
    find_embedding(model).freeze()
    with pytest.raises(ValueError, match=r'3 parameter groups, 1 of them .* has 2 and 0.*--no-resume-opt'):
        create(model).load_state_dict(saved)


@pytest.mark.parametrize(('name', 'kwargs', 'words'), [
    ('sgdp2be', {'lr': -0.1}, r'lr=-0\.1.*finite'),
    ('adamwp2be', {'weight_decay': float('nan')}, 'weight_decay=nan.*finite'),
    ('sgdp2be', {'embedding_lr': '1e-4'}, r"embedding_lr='1e-4'.*YAML.*1\.0e-4"),
    ('sgdp2be', {'embedding_eps': -1e-8}, 'embedding_eps=-1e-08.*finite'),
    ('sgdp2be', {'embedding_betas': (0.9, 1.0)}, r'embedding_betas\[1\]=1\.0.*\[0, 1\)'),
    ('adamwp2be', {'embedding_betas': 0.9}, r'embedding_betas=0\.9.*two numbers'),
    ('sgdp2be', {'embedding_sched': 'step'}, "embedding_sched 'step'.*'follow', 'constant'"),
    ('sgdp2be', {'smoothness': -1.0}, r'smoothness=-1\.0.*finite'),
    ('adamwp2be', {'smoothness': 'high'}, "smoothness='high'.*finite"),
    ('adamwp2be', {'smoothness_reduction': 'none'}, "smoothness_reduction 'none'.*'mean', 'sum'"),
    ('sgdp2be', {'timm_recipe': 'none'}, 'Instead, start this one by `timm-p2be train'),
    ('adamwp2be', {'timm_recipe': 'imagenet.yaml'}, 'timm-p2be train.*train_scripts/recipes/timm/imagenet.yaml'),
    ('sgdp2be', {'momentum': 0.0}, 'nesterov=True with momentum=0.0.*nesterov=False'),
])  # fmt: skip
def test_settings_are_checked(model, name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        create_optimizer_v2(list(model.parameters()), name, **{**NETWORK[name], **kwargs})


def test_other_misuse_is_refused(model):
    with pytest.raises(TypeError, match='embeding_lr'):
        create(model, embeding_lr=1e-3)


def test_layer_decay_does_not_scale_the_table(model):
    optimizer = create(model, layer_decay=0.5)
    table = group_of(optimizer, find_embedding(model).weight)
    assert 'lr_scale' not in table
    assert group_of(optimizer, model.stem.weight)['lr_scale'] == 0.5
    create_scheduler_v2(optimizer, 'cosine', num_epochs=10)[0].step(0)
    assert timm_p2be.optim.learning_rates(optimizer) == {'network': 0.1, 'embedding': 1e-4}


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
