"""One epoch of training and one pass of validation."""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from timm.task import evaluation_sample_limit
from timm.utils import dispatch_clip_grad, is_primary
from torch import Tensor

from timm_p2be.optim import learning_rates
from timm_p2be.task import P2BETask
from timm_p2be.training.checkpoints import Diverged, Position
from timm_p2be.training.progress import Progress
from timm_p2be.training.schedules import Schedules
from timm_p2be.training.stopping import Interrupted

_logger = logging.getLogger('train')


class _Sent(NamedTuple):
    """Loss parts of a batch on their way from the device."""

    values: Tensor  # in pinned memory
    arrived: torch.cuda.Event | None
    where: str
    images: int


@dataclass
class Trainer:
    """Trains and validates one epoch at a time; `position` is where training stands.

    A step never waits for the device: the losses of a batch are read while it works on the next one, and all of them
    before a line is logged or a checkpoint written. `position` lacks the sums of what has not been read.
    """

    args: argparse.Namespace
    task: P2BETask
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    autocast: Callable[[], torch.autocast]
    scaler: Any
    device: torch.device
    stopping: Callable[[], bool]  # whether a signal asked the run to stop
    save_recovery: Callable[[], None]  # writes a checkpoint of the position
    position: Position = field(default_factory=Position)
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was written
    parts: dict[str, float] = field(default_factory=dict)  # of the loss of the last batch that was read
    track: Callable[[dict[str, float], int], None] | None = None  # draws figures after so many updates
    diverged: str = ''  # where, on this process
    _sent: _Sent | None = None

    def train(self, loader: Any, start: Position) -> dict[str, float]:
        """Train one epoch from a position on; batches before it are read and passed over.

        Returns means of the loss parts, images per second and the share of time spent waiting for data. Raises
        Diverged, or Interrupted if a signal asked to stop.
        """
        args, accum, total = self.args, self.args.grad_accum_steps, self.schedules.updates_per_epoch
        sums = {name: start.sums.get(name, 0.0) for name in ('loss', *self.task.parts)}
        self.position = position = replace(start, sums=sums, updates_per_epoch=total)
        images_seen = 0
        epochs = self.schedules.num_epochs
        progress = Progress(start.epoch, epochs, total, start.update, is_primary(args), args.log_interval, self.track)
        self.task.train()
        self.optimizer.zero_grad()
        try:
            self._stop_or_save()
            for batch, (images, labels) in self._batches(loader, start, progress):
                update = batch // accum
                done = (batch + 1) % accum == 0 or batch + 1 == len(loader)
                # the last update of an epoch may hold fewer batches
                self._batch(images, labels, min(accum, len(loader) - update * accum), done)
                images_seen += len(images) // self.task.num_views * args.world_size
                if done:
                    self._after_update(update + 1)
                    self._stop_or_save()
                    progress.report(update + 1, images_seen, self.parts, learning_rates(self.optimizer))
            self.check_losses()
        finally:
            progress.close()
        totals = torch.tensor([*sums.values(), position.count], dtype=torch.float64).to(self.device)
        if args.distributed:
            torch.distributed.all_reduce(totals)
        means = (totals[:-1] / totals[-1].clamp(min=1)).tolist()
        return {**dict(zip(sums, means, strict=True)), **progress.speed(images_seen)}

    def _batches(self, loader: Any, start: Position, progress: Progress) -> Iterator[tuple[int, Any]]:
        """Yield the batches from a position on, with their index in the epoch."""
        if start.update >= self.schedules.updates_per_epoch:
            return  # stopped in validation
        batches = enumerate(progress.timed(loader))
        while True:
            try:
                batch, contents = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if self.stopping():  # the signal ended a worker that had not come to ignore it yet
                    raise Interrupted(alone=True) from None
                raise
            if batch >= len(loader):  # a streamed data set may be longer than it says
                return
            if batch >= start.update * self.args.grad_accum_steps:
                yield batch, contents
                continue
            progress.restart()
            if self.stopping() and not self.args.distributed:
                raise Interrupted

    def _batch(self, images: Tensor, labels: Tensor, accumulated: int, update: bool) -> None:
        """Forward and backward of one batch, and the optimizer's step if it completes an update."""
        args, scaler = self.args, self.scaler
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with nullcontext() if update else self.task.no_sync():
            with self.autocast():
                result = self.task(images, labels)
            self._send(result, len(images) // self.task.num_views)
            loss = result['loss'] / accumulated
            clip = self.task.get_clip_parameters(exclude_head='agc' in args.clip_mode) if args.clip_grad else None
            if scaler is not None:
                scaler(
                    loss,
                    self.optimizer,
                    clip_grad=args.clip_grad,
                    clip_mode=args.clip_mode,
                    parameters=clip,
                    need_update=update,
                )
                return
            loss.backward()
        if update:
            if clip is not None:
                dispatch_clip_grad(clip, value=args.clip_grad, mode=args.clip_mode)
            self.optimizer.step()

    def _send(self, result: dict[str, Tensor], count: int) -> None:
        """Start to copy the loss parts of a batch, and read those of the batch before."""
        self._read()
        values = torch.stack([result[name].detach() for name in ('loss', *self.task.parts)])
        arrived = None
        if values.is_cuda:
            values, arrived = values.to('cpu', non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._sent = _Sent(values, arrived, self.where(), count)

    def _read(self) -> None:
        if self._sent is None:
            return
        (values, arrived, where, count), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()
        sums = self.position.sums
        self.parts = dict(zip(('loss', *self.task.parts), values.tolist(), strict=True))
        sums.update({name: sums.get(name, 0.0) + value * count for name, value in self.parts.items()})
        self.position.count += count
        if not (math.isfinite(self.parts['loss']) or self.diverged):
            self.diverged = f'The loss is no longer finite at {where} (on this process: {self.parts}).'
        if self.diverged and not self.args.distributed:  # several processes stop together, where they vote
            raise Diverged(self.diverged)

    def check_losses(self, alone: bool = False) -> None:
        """Wait for the losses of all batches so far; raise Diverged if one, on any process, is not finite.

        `alone` asks no other process.
        """
        self._read()
        if self.diverged if alone else self._any(bool(self.diverged))[0]:
            raise Diverged(self.diverged or f'The loss of another process is no longer finite at {self.where()}.')

    def _after_update(self, update: int) -> None:
        self.position.update = update
        num_updates = self.position.epoch * self.schedules.updates_per_epoch + update
        self.optimizer.zero_grad()
        self.task.update_ema(step=num_updates)
        self.schedules.after_update(num_updates)

    def where(self) -> str:
        """Return the update at work, for messages."""
        return f'epoch {self.position.epoch}, update {self.position.update}'

    def _any(self, *flags: bool) -> list[bool]:
        """Return which flags are set on any process, so that all of them do the same at the same place."""
        if not self.args.distributed:
            return [*flags]
        votes = torch.tensor(flags, dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def _stop_or_save(self) -> None:
        """Raise Interrupted if a signal asked to stop, else write a recovery file if one is due."""
        args, update = self.args, self.position.update
        due = bool(args.recovery_interval) and update % args.recovery_interval == 0
        logged = update % max(args.log_interval, 1) == 0 or update == self.position.updates_per_epoch
        if args.distributed and self.device.type == 'cuda' and not (due or logged):
            return  # a vote waits for the device
        if logged:
            self._read()
        late = bool(args.recovery_minutes) and time.monotonic() - self.saved > 60 * args.recovery_minutes
        diverged, stop, late = self._any(bool(self.diverged), self.stopping(), late)
        if diverged:
            self.check_losses()
        if stop:
            raise Interrupted
        if update and (late or due):
            self.save_recovery()

    @torch.inference_mode()
    def validate(self, loader: Iterable[Any], ema: bool = False) -> dict[str, float]:
        """Return loss, top1 and top5 (in percent) on a validation loader, of the model or its moving average."""
        model = self.task.get_eval_model(ema=ema)
        assert model is not None
        model.eval()
        evaluator = self.task.create_evaluator(max_samples=evaluation_sample_limit(loader))
        start = time.time()
        for images, labels in loader:
            if self.stopping() and not self.args.distributed:  # several processes cannot stop one by one
                raise Interrupted
            if self.args.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                output = model(images)
            evaluator.update(output, labels)
        metrics = evaluator.compute(distributed=self.args.distributed)
        if not math.isfinite(metrics['loss']):
            raise Diverged(f'The validation loss is {metrics["loss"]} at {self.where()}.')
        if is_primary(self.args):
            _logger.info(
                f'Validation{" (EMA)" if ema else ""}: top1 {metrics["top1"]:.2f} %, error {100 - metrics["top1"]:.2f} '
                f'%, top5 {metrics["top5"]:.2f} %, loss {metrics["loss"]:.4f}  ({time.time() - start:.1f} s)'
            )
        return metrics
