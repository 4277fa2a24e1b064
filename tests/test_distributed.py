"""Two processes with half the batch each compute the gradients of one process with the whole batch."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from timm_p2be.losses import REDUCTIONS
from timm_p2be.stem import EncodedConv2d
from timm_p2be.task import P2BETask

WORLD, VIEWS, BATCH, STEPS = 2, 3, 4, 3


def make_task(reduction: str) -> P2BETask:
    """A task on a tiny model in eval mode: batch normalization over half a batch would rightly differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        EncodedConv2d(3, 4, 3, num_bits=8),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    return P2BETask(model.eval(), smoothness=10.0, reduction=reduction, verbose=False)


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(VIEWS, BATCH, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (BATCH,), generator=generator)


def train(task: P2BETask, rank: int, world: int) -> list[Tensor]:
    """Return the gradients of the first step and the parameters after the last, of images rank::world of every view."""
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, 'sgdp2be', lr=0.1, weight_decay=5e-4, embedding_lr=1e-2)
    result = []
    for step in range(STEPS):
        images, labels = make_batch(step)
        optimizer.zero_grad()
        task(images[:, rank::world].flatten(0, 1), labels[rank::world])['loss'].backward()
        if step == 0:
            result = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return result + [p.detach() for p in model.parameters()]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # a file as the meeting point needs no free port
    store = f'file://{folder}/store'
    dist.init_process_group('gloo', store, timedelta(minutes=1), WORLD, rank)
    for reduction in REDUCTIONS:
        task = make_task(reduction)
        task.prepare_distributed()
        torch.save(train(task, rank, WORLD), f'{folder}/{reduction}-{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tensors of both processes; they talk over the loopback interface only."""
    folder = tmp_path_factory.mktemp('gloo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GLOO_SOCKET_IFNAME', 'lo0' if sys.platform == 'darwin' else 'lo')
        mp.spawn(worker, (str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_two_processes_equal_one(reduction: str, results: Path) -> None:
    ranks = [torch.load(results / f'{reduction}-{rank}.pt', weights_only=True) for rank in range(WORLD)]
    assert all(torch.equal(one, other) for one, other in zip(*ranks, strict=True))
    expected = train(make_task(reduction), rank=0, world=1)
    count = len(expected) // 2
    for ours, whole in zip(ranks[0][:count], expected[:count], strict=True):
        # gradients: only the order of float32 sums differs
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-6)
    for ours, whole in zip(ranks[0][count:], expected[count:], strict=True):
        # parameters: AdamW divides by the root of its second moment, so rounding shows where a gradient is near zero
        torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-4)
