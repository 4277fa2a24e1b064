"""The training objective is Eq. 10 of the parts that test_losses.py tests, and the task inside timm's machinery."""

import copy

import pytest
import torch
import torch.distributed as dist
from forks import run_ranks
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver
from torch import Tensor, nn
from torch._dynamo.utils import counters

from timm_p2be.losses import REDUCTIONS, jensen_shannon, smoothness_loss
from timm_p2be.stem import EncodedConv2d, find_embedding
from timm_p2be.task import P2BETask


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tiny(encoding: str | None = 'p2be') -> nn.Sequential:
    stem = EncodedConv2d(3, 4, 3, encoding, num_bits=8) if encoding else nn.Conv2d(3, 4, 3)
    return nn.Sequential(stem, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def batch(views: int = 3, size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(views * size, 3, 8, 8), torch.randint(0, 5, (size,))


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize(('views', 'alpha', 'lam'), [(3, 12.0, 1.0), (3, 2.0, 10.0), (2, 12.0, 0.1), (3, 0.0, 0.0)])
def test_objective_is_eq_10(views, alpha, lam, reduction):
    model = tiny().eval()
    with torch.no_grad():
        model[-1].weight.mul_(20)  # views that disagree
    images, labels = batch(views)
    task = P2BETask(model, alpha=alpha, smoothness=lam, reduction=reduction, num_views=views)
    parts = task(images, labels)
    logits = model(images)
    ce = nn.functional.cross_entropy(logits[: len(labels)], labels)
    jsd, smoothness = jensen_shannon(logits, views), smoothness_loss(find_embedding(model).weight, reduction)
    expected = {'ce': ce, 'jsd': jsd, 'smoothness': smoothness, 'loss': ce + alpha * jsd + lam * smoothness}
    assert all(torch.allclose(parts[name], value, rtol=1e-5) for name, value in expected.items())
    slopes = (
        torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        for loss in (parts['loss'], expected['loss'])
    )
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-6)
    assert jsd > 0.05
    assert torch.equal(parts['output'], logits[: len(labels)])


def test_defaults_are_the_papers():
    task = P2BETask(tiny())
    assert (task.alpha, task.smoothness, task.reduction, task.num_views) == (12.0, 1.0, 'mean', 3)


def test_only_loss_and_output_carry_gradients():
    parts = P2BETask(tiny())(*batch())
    assert {name for name, value in parts.items() if value.requires_grad} == {'loss', 'output'}
    assert all(parts[name].dtype == torch.float32 and parts[name].ndim == 0 for name in ('ce', 'jsd', 'smoothness'))


def test_views_share_one_forward_and_its_batch_statistics():
    model = tiny()
    shapes = []
    model[1].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[0]))
    P2BETask(model)(*batch(3, 4))
    assert shapes == [12]
    assert model[1].num_batches_tracked == 1


def test_labels_may_be_repeated_for_every_view():
    model = tiny().eval()
    images, labels = batch()
    once, thrice = (P2BETask(model)(images, y) for y in (labels, labels.repeat(3)))
    assert all(torch.equal(once[name], thrice[name]) for name in once)


def test_one_view_without_a_table_is_plain_cross_entropy():
    model = tiny('onehot').eval()
    images, labels = batch(1)
    parts = P2BETask(model, smoothness=0, num_views=1)(images, labels)
    torch.testing.assert_close(parts['loss'], nn.functional.cross_entropy(model(images), labels))
    assert parts['jsd'] == parts['smoothness'] == 0
    assert parts['output'].shape == (4, 5)


def test_criterion_sees_the_clean_view_only():
    model = tiny().eval()
    images, labels = batch()
    clean = model(images)[:4]
    smooth = P2BETask(model, criterion_kwargs={'smoothing': 0.1})(images, labels)
    torch.testing.assert_close(smooth['ce'], nn.functional.cross_entropy(clean, labels, label_smoothing=0.1).detach())
    own = P2BETask(model, criterion=lambda logits, target: logits.sum())(images, labels)
    torch.testing.assert_close(own['ce'], clean.sum().detach())


def test_frozen_table_reports_its_smoothness_and_gets_no_gradient():
    model = tiny()
    table = find_embedding(model).freeze().weight
    parts = P2BETask(model)(*batch())
    parts['loss'].backward()
    assert table.grad is None
    assert 0.5 < parts['smoothness'] < 1.5


def test_objective_is_float32_for_low_precision_models():
    model = tiny()
    with torch.autocast('cpu', torch.bfloat16):
        assert P2BETask(model)(*batch())['loss'].dtype == torch.float32
    low = P2BETask(tiny().bfloat16().eval())(*batch())
    assert low['output'].dtype == torch.bfloat16
    assert low['loss'].dtype == low['ce'].dtype == torch.float32


def test_compiled_task_computes_the_same():
    model = tiny().eval()
    images, labels = batch()
    expected = P2BETask(copy.deepcopy(model))(images, labels)
    task = P2BETask(model)
    task.compile(backend='eager')
    parts = task(images, labels)
    torch.testing.assert_close(parts, expected)
    parts['loss'].backward()
    assert find_embedding(model).weight.grad.abs().max() > 0


def test_compiled_task_is_one_graph_for_all_batch_sizes():
    torch.compiler.reset()
    counters.clear()
    task = P2BETask(tiny())
    task.compile(backend='eager')
    for size in (2, 3, 7, 4):
        task(*batch(size=size))['loss'].backward()
    assert counters['stats']['unique_graphs'] == 1
    assert not counters['graph_break']
    images, labels = batch()  # compiled by others: the look at the first labels breaks no graph either
    torch.compile(P2BETask(tiny()), backend='eager', fullgraph=True)(images, labels.repeat(3))


def test_what_is_distributed_is_the_compiled_network(monkeypatch):
    monkeypatch.setattr(nn.parallel, 'DistributedDataParallel', lambda module, **kwargs: module)
    task = P2BETask(tiny().eval(), verbose=False)
    expected = task(*(data := batch()))
    network = task.compile(backend='eager')
    assert task.prepare_distributed().get_trainable_module() is network
    torch.testing.assert_close(task(*data), expected)


def test_the_table_is_listed_once_and_copied_with_its_task():
    model = tiny().eval()
    task = P2BETask(model, num_views=1)
    assert set(task.state_dict()) == {f'trainable_module.{name}' for name in model.state_dict()}
    twin = copy.deepcopy(task)
    with torch.no_grad():
        find_embedding(twin.trainable_module).weight.fill_(1.0)
    assert twin(*batch(1))['smoothness'].item() == pytest.approx(0, abs=1e-6)


def test_ema_and_checkpoints_average_the_latents(tmp_path):
    task = P2BETask(tiny())
    ema = task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'sgdp2be', lr=0.1, embedding_lr=0.1)
    start = find_embedding(task.trainable_module).weight.detach().clone()
    task(*batch())['loss'].backward()
    optimizer.step()
    task.update_ema(step=2)  # timm's first update copies
    now = find_embedding(task.trainable_module).weight
    torch.testing.assert_close(find_embedding(ema).weight, (start + now) / 2)
    assert not torch.equal(start, now)
    CheckpointSaver(None, optimizer, task=task, checkpoint_dir=str(tmp_path)).save_checkpoint(0, 1.0)
    saved = torch.load(tmp_path / 'last.pth.tar', weights_only=True)
    assert set(saved['state_dict']) == set(saved['state_dict_ema']) == set(tiny().state_dict())


@pytest.mark.parametrize(
    ('encoding', 'kwargs', 'words'),
    [
        ('p2be', {'alpha': -1.0}, 'alpha=-1.0'),
        ('p2be', {'smoothness': float('nan')}, 'smoothness=nan'),
        ('p2be', {'reduction': 'none'}, "'none'"),
        ('p2be', {'num_views': 0}, 'num_views=0'),
        (None, {}, 'smoothness=1.0 no.learned.table'),
        ('thermometer', {'smoothness': 0.5}, 'smoothness=0.5 no.learned.table'),
    ],
)
def test_arguments_are_checked(encoding, kwargs, words):
    with pytest.raises(ValueError, match='.*'.join(words.split())):
        P2BETask(tiny(encoding), **kwargs)


@pytest.mark.parametrize(('images', 'labels'), [(8, 8), (9, 4), (6, 3), (0, 0), (12, 12)])
def test_batches_that_are_no_three_views_are_refused(images, labels):
    """The last one is a plain batch: labels of its thirds differ."""
    with pytest.raises(ValueError, match=f'Got {images} images .*num_views='):
        P2BETask(tiny())(torch.rand(images, 3, 8, 8), torch.arange(labels) % 5)


# two processes with half the batch each compute the gradients of one process with the whole batch


def make_task(reduction: str) -> P2BETask:
    """In eval mode: batch normalization over half a batch would rightly differ."""
    torch.manual_seed(0)
    return P2BETask(tiny().eval(), smoothness=10.0, reduction=reduction, verbose=False)


def train(task: P2BETask, rank: int, world: int) -> list[Tensor]:
    """Return the gradients of the first step and the parameters after the last, of images rank::world of every view."""
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, 'sgdp2be', lr=0.1, weight_decay=5e-4, embedding_lr=1e-2)
    result = []
    for step in range(3):
        torch.manual_seed(step)
        images, labels = batch()
        optimizer.zero_grad()
        views = images.unflatten(0, (3, 4))[:, rank::world].flatten(0, 1)
        task(views, labels[rank::world])['loss'].backward()
        if step == 0:
            result = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return result + [p.detach() for p in model.parameters()]


def train_together(reduction: str) -> list[Tensor]:
    dist.init_process_group('gloo')
    task = make_task(reduction)
    task.prepare_distributed()
    return train(task, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_two_processes_equal_one(reduction: str) -> None:
    expected = train(make_task(reduction), rank=0, world=1)
    result, other = run_ranks(train_together, reduction)
    assert all(torch.equal(one, two) for one, two in zip(result, other, strict=True))
    count = len(expected) // 2
    # gradients: only the order of float32 sums differs
    torch.testing.assert_close(result[:count], expected[:count], rtol=1e-4, atol=1e-6)
    # parameters: AdamW divides by the root of its second moment, so rounding shows where a gradient is near zero
    torch.testing.assert_close(result[count:], expected[count:], rtol=1e-3, atol=1e-4)
