"""Learning rates: timm's scheduler for every parameter group, and the table's own cosine after it."""

import argparse

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler

from timm_p2be.optim import EmbeddingCosine


class Schedules:
    """The rates of an optimizer into which a checkpoint was loaded already.

    `num_epochs` is the number of epochs to train, warm-up and cool-down included.
    """

    def __init__(self, args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> None:
        self.updates_per_epoch = updates_per_epoch
        self.on_updates = args.sched_on_updates
        scheduler, self.num_epochs = create_scheduler_v2(
            optimizer,
            **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
            updates_per_epoch=updates_per_epoch,
        )
        self.network: Scheduler | None = scheduler
        self.embedding: EmbeddingCosine | None = None
        if args.p2be_sched == 'cosine':
            self.embedding = EmbeddingCosine(optimizer, self.num_epochs * updates_per_epoch, args.p2be_min_lr)

    def start(self, epoch: int, update: int) -> None:
        """Set the rates of a run that begins, or goes on, at `epoch` after `update` of its updates."""
        num_updates = epoch * self.updates_per_epoch + update
        if self.network is not None and num_updates:
            if self.on_updates:
                self.network.step_update(num_updates)
            else:
                self.network.step(epoch)
        if self.embedding is not None:
            self.embedding.step_update(num_updates)

    def after_update(self, num_updates: int) -> None:
        """Set the rates after `num_updates` updates of the run."""
        if self.network is not None:
            self.network.step_update(num_updates)
        if self.embedding is not None:
            self.embedding.step_update(num_updates)

    def after_epoch(self, epochs: int, metric: float | None) -> None:
        """Set the rates after `epochs` epochs of the run."""
        if self.network is not None:
            self.network.step(epochs, metric)
