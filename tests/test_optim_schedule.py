"""The table's learning rate in the three modes: what the update really used, not what a group says."""

import math
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from timm_p2be.encodings import PixelEmbedding
from timm_p2be.optim import SGDP2BE, EmbeddingCosine, learning_rates

UPDATES = 10


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = PixelEmbedding(num_bits=2)
        self.fc = nn.Linear(2, 2)


def create(sched: str, **kwargs) -> tuple[Model, torch.optim.Optimizer]:
    model = Model()
    # eps and decay of 0 and a constant gradient: AdamW then moves every latent by exactly its learning rate
    quiet = {'embedding_eps': 0.0, 'embedding_weight_decay': 0.0, 'embedding_lr': 0.01}
    return model, create_optimizer_v2(model, 'sgdp2be', lr=0.1, embedding_sched=sched, **{**quiet, **kwargs})


def moved(model: Model, optimizer: torch.optim.Optimizer) -> float:
    """Step once and return how far the table moved, which is the learning rate that was used."""
    with torch.no_grad():
        model.embedding.weight.zero_()  # float32 resolves small steps from here
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return -model.embedding.weight[0, 0].item()


def cosine(t: float, start: float, end: float, total: int = UPDATES) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * t / total))


def rates(model: Model, optimizer: torch.optim.Optimizer, *schedules: Any, updates: int = UPDATES) -> list[float]:
    """Train and return the rates that the table was moved by, which are those that are told."""
    used = []
    for update in range(1, updates + 1):
        told = learning_rates(optimizer)
        used.append(moved(model, optimizer))
        assert told['embedding'] == pytest.approx(used[-1])
        assert told['network'] == optimizer.param_groups[0]['lr']
        for schedule in schedules:
            schedule.step_update(update)
    return used


def timm_scheduler(optimizer: torch.optim.Optimizer, warmup_epochs: int = 0):
    return create_scheduler_v2(
        optimizer,
        'cosine',
        num_epochs=1,
        updates_per_epoch=UPDATES,
        step_on_epochs=False,
        min_lr=1e-4,
        warmup_epochs=warmup_epochs,
        warmup_lr=5e-4,
    )[0]


def test_follow_uses_what_timms_scheduler_writes():
    model, optimizer = create('follow')
    used = rates(model, optimizer, timm_scheduler(optimizer))
    assert used == pytest.approx([cosine(t, 0.01, 1e-4) for t in range(UPDATES)])


def test_constant_ignores_timms_scheduler_and_its_warmup():
    model, optimizer = create('constant')
    assert moved(model, optimizer) == pytest.approx(0.01)  # no scheduler at all
    used = rates(model, optimizer, timm_scheduler(optimizer, warmup_epochs=1))
    assert used == pytest.approx([0.01] * UPDATES)
    assert optimizer.param_groups[-1]['lr'] != 0.01


def test_cosine_runs_beside_timms_scheduler():
    model, optimizer = create('cosine')
    driver = EmbeddingCosine(optimizer, total_updates=UPDATES, min_lr=1e-3)
    used = rates(model, optimizer, timm_scheduler(optimizer, warmup_epochs=1), driver, updates=UPDATES + 2)
    assert used == pytest.approx([cosine(min(t, UPDATES), 0.01, 1e-3) for t in range(UPDATES + 2)])


def test_cosine_continues_after_resume():
    model, optimizer = create('cosine')
    timm_scheduler(optimizer)
    driver = EmbeddingCosine(optimizer, total_updates=UPDATES)
    moved(model, optimizer)
    driver.step_update(4)
    model, resumed = create('cosine')
    resumed.load_state_dict(optimizer.state_dict())
    timm_scheduler(resumed)
    driver = EmbeddingCosine(resumed, total_updates=UPDATES)
    driver.step_update(4)
    assert moved(model, resumed) == pytest.approx(cosine(4, 0.01, 1e-6))


def test_cosine_that_nobody_drives_is_an_error_before_anything_moves():
    model, optimizer = create('cosine')
    scheduler = timm_scheduler(optimizer)
    scheduler.step_update(1)
    before = model.fc.weight.clone()
    with pytest.raises(ValueError, match=r"EmbeddingCosine.*embedding_sched='follow' or 'constant'"):
        moved(model, optimizer)
    assert torch.equal(model.fc.weight, before)
    with pytest.raises(ValueError, match='EmbeddingCosine'):
        learning_rates(optimizer)


def test_resume_with_another_mode_takes_the_new_mode():
    _, constant = create('constant')
    model, follow = create('follow')
    follow.load_state_dict(constant.state_dict())
    follow.param_groups[-1].update(lr=0.002, initial_lr=0.01)
    assert moved(model, follow) == pytest.approx(0.002)


def test_without_a_table_every_mode_is_quiet():
    layer = nn.Linear(2, 2)
    optimizer = SGDP2BE(layer.parameters(), lr=0.1, embedding_sched='cosine')
    EmbeddingCosine(optimizer, total_updates=UPDATES).step_update(3)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert learning_rates(optimizer) == {'network': 0.1}
    assert learning_rates(torch.optim.SGD(layer.parameters(), lr=0.3)) == {'network': 0.3}


def test_cosine_arguments_are_checked():
    _, optimizer = create('cosine')
    for call, words in (
        (lambda: EmbeddingCosine(optimizer, total_updates=0), 'total_updates=0.*at least 1'),
        (lambda: EmbeddingCosine(optimizer, 10, min_lr=0.02), r'min_lr=0\.02.*embedding_lr of 0\.01'),
        (lambda: EmbeddingCosine(create('follow')[1], 10), "'follow'.*embedding_sched='cosine'"),
        (lambda: EmbeddingCosine(torch.optim.SGD(Model().parameters(), lr=0.1), 10), "SGD.*embedding_sched='cosine'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
