"""Trains any timm model, encoded or not, by the objective of the P2BE paper (Eq. 10), or adversarially (Eq. 11, 12).

Built on timm's library; flags, output folder, summary.csv and checkpoints are those of timm's train.py
(huggingface/pytorch-image-models). Recipes are in train_scripts/recipes. Scale out with torchrun.

Exit codes: 0 finished, 1 diverged, 2 wrong flags, data or checkpoint, 74 the output folder takes no more files, 75 a
process is gone that the run needs, and 128 plus the signal's number where one stopped the run after a checkpoint:
Ctrl-C (130), SIGTERM (143), SIGUSR1, SIGHUP.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import safe_model_name
from timm.utils import (
    distribute_bn,
    is_primary,
    random_seed,
    setup_default_logging,
    trim_summary,
    update_summary,
)

from timm_p2be.data.image_files import UnreadableImage
from timm_p2be.files import content_of
from timm_p2be.optim import learning_rates
from timm_p2be.robustness.images import class_names
from timm_p2be.stem import learned_embedding
from timm_p2be.training import building
from timm_p2be.training.arguments import Arguments, parse_args
from timm_p2be.training.checkpoints import (
    Diverged,
    Position,
    check_checkpoint,
    fit_position,
    newest_checkpoint,
    read_resumed,
    resume,
    resume_ema,
)
from timm_p2be.training.embedding_flags import adopt_table, pinned
from timm_p2be.training.ending import ending
from timm_p2be.training.epoch import Trainer
from timm_p2be.training.images import open_data
from timm_p2be.training.live import Trackers, draw_curves, packed_bits, table_figures
from timm_p2be.training.loading import build_loaders
from timm_p2be.training.output import OutputFolder, experiment_folder, settle_resume, writing
from timm_p2be.training.processes import leave_processes
from timm_p2be.training.saver import Saver, all_buffers, training_state
from timm_p2be.training.schedules import Schedules
from timm_p2be.training.stopping import Interrupted, StopSignal

_logger = logging.getLogger('train')


class Run:
    """A training run: everything that `main` builds, and the loop over epochs.

    Raises:
        ValueError: flags, data or checkpoint are wrong; nothing has been written then.
        CannotWrite: the output folder takes no files.
    """

    def __init__(self, arguments: Arguments, stopping: StopSignal) -> None:
        self.args = args = arguments.args
        device = building.build_device(args, arguments.explicit)
        if is_primary(args):
            for note in arguments.notes:
                _logger.info(note)
        self.trackers = Trackers(args.log if is_primary(args) else ())
        settle_resume(args)
        found = read_resumed(args.resume) if args.resume else None
        if found is not None:
            with content_of(f'--resume {args.resume}'):
                check_checkpoint(found.raw, args, arguments.explicit)
                adopt_table(args, found)
        elif args.p2be_embedding:
            args.p2be_embedding = pinned(args.p2be_embedding)
        random_seed(args.seed, args.rank)
        data = open_data(args)
        self.label_names = class_names(data[0])
        model = building.build_model(args, device)
        self.loaders = build_loaders(args, model, device, *data)
        self.table = None if args.p2be_freeze else learned_embedding(model)
        self.task = building.build_task(args, model, device, self.loaders.data_config)
        self.optimizer = building.build_optimizer(args, model)
        autocast, self.scaler = building.build_precision(args, device)
        self.position = Position()
        if found is not None:
            optimizer = None if args.no_resume_opt else self.optimizer
            self.position = resume(found.raw, args, self.task, optimizer, self.scaler)
            self.position = fit_position(self.position, found.args, args, self._updates_per_epoch())
        if args.start_epoch is not None:
            self.position = Position(args.start_epoch)
        if args.model_ema:
            self.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
            if found is not None:
                with content_of(f'--resume {args.resume}'):
                    resume_ema(found.raw, self.task)
        if args.torchcompile:
            building.compile_task(args, self.task)
        if args.distributed:
            ids = [device] if device.type == 'cuda' else None
            self.task.prepare_distributed(device_ids=ids, broadcast_buffers=not args.no_ddp_bb)
        self.schedules = Schedules(args, self.optimizer, self._updates_per_epoch())
        self.trainer = Trainer(
            args,
            self.task,
            self.optimizer,
            self.schedules,
            autocast,
            self.scaler,
            device,
            stopping,
            self._save_recovery,
        )
        self.output: OutputFolder | None = None
        if is_primary(args):
            self._open_output()

    def _updates_per_epoch(self) -> int:
        return -(-len(self.loaders.training) // self.args.grad_accum_steps)

    def _updates_before(self, position: Position) -> int:
        return position.epoch * self._updates_per_epoch() + position.update

    def _open_output(self) -> None:
        args = self.args
        size = self.loaders.data_config['input_size'][-1]
        name = f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}-{size}'
        self.folder = experiment_folder(args, name)
        with writing(self.folder):
            self.output = OutputFolder(self.folder)
        self.saver = Saver(self.folder, args.eval_metric, args.checkpoint_hist)
        with writing(self.folder):
            if args.overwrite:
                self.output.clear()
            if args.resume and Path(args.resume).resolve().parent == self.folder.resolve():
                self.saver.restore(self.position.epoch)
            trim_summary(str(self.folder / 'summary.csv'), self.position.epoch)
            self.output.write_flags(args)
        self.trackers.start(args, self.folder, self._updates_before(self.position))
        self.trainer.track = self.trackers.scalars

    def close(self) -> None:
        """Leave the output folder to others."""
        self.trackers.close()
        if self.output is not None:
            self.output.close()

    def newest(self) -> str:
        """Return the newest sound checkpoint to go on from, if one was written; the first process knows where."""
        return 'auto' if self.output is None else str(newest_checkpoint(self.folder) or '(none was written yet)')

    def _log_start(self) -> None:
        args = self.args
        if not is_primary(args):
            return
        parameters = sum(parameter.numel() for parameter in self.task.parameters() if parameter.requires_grad)
        total = args.world_size * args.batch_size * args.grad_accum_steps
        _logger.info(
            f'{args.model}: {parameters:,} trained parameters. Total batch {total}: {args.world_size} processes * '
            f'{args.batch_size} images * {args.grad_accum_steps} batches. {self.schedules.num_epochs} epochs of '
            f'{self.schedules.updates_per_epoch} updates, from epoch {self.position.epoch}, update '
            f'{self.position.update}. Writing to {self.folder}'
        )
        if self.position.epoch >= self.schedules.num_epochs:
            _logger.warning(f'Nothing to do: --epochs {args.epochs} are done already.')

    def _save_recovery(self, alone: bool = False) -> None:
        self.trainer.check_losses(alone)
        position = self.trainer.position
        # timm has no entry for it
        state = self._state(position.epoch, argparse.Namespace(**vars(self.args), position=asdict(position)))
        if self.args.distributed and not alone:
            state |= all_buffers(self.task, state)
        if self.output is not None:
            with writing(self.folder):
                self.output.check()
                self.saver.save_recovery(state, position.epoch, position.update)
        self.trainer.saved = time.monotonic()

    def _state(self, epoch: int, args: argparse.Namespace) -> dict[str, Any]:
        try:
            state = training_state(args, self.task, self.optimizer, self.scaler, epoch)
        except Diverged as error:
            raise Diverged(f'{error} at {self.trainer.where()}.') from error
        return {**state, 'label_names': self.label_names} if self.label_names else state

    def train(self) -> None:
        """Train from the run's position to its last epoch, or raise Diverged, or Interrupted after a checkpoint."""
        self._log_start()
        self.schedules.start(self.position.epoch, self.position.update)
        try:
            for epoch in range(self.position.epoch, self.schedules.num_epochs):
                self._seed_epoch(epoch)
                start = self.position if epoch == self.position.epoch else Position(epoch)
                start.codes = start.codes or packed_bits(self.table)
                train_metrics = self.trainer.train(self.loaders.training, start)
                self._finish_epoch(epoch, train_metrics)
        except (Interrupted, UnreadableImage) as stop:
            self._save_recovery(alone=getattr(stop, 'alone', True))
            raise
        if self.output is not None and (best := self.saver.best_epoch) is not None:
            _logger.info(f'Best {self.args.eval_metric}: {self.saver.ranked[best]:.4f} (epoch {best})')
            draw_curves(self.folder)

    def _seed_epoch(self, epoch: int) -> None:
        """Make everything random in an epoch a function of seed, epoch and process, so that resumed runs agree."""
        seed = int(np.random.SeedSequence([self.args.seed, epoch]).generate_state(1)[0])
        random_seed(seed % (2**32 - 2**16), self.args.rank)  # numpy's seeds end at 2**32, and the rank is added
        loader = self.loaders.training
        for part in (loader.dataset, loader.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)

    def _finish_epoch(self, epoch: int, train_metrics: dict[str, float]) -> None:
        """Validate, write summary and checkpoint, step the schedule."""
        args = self.args
        spread_bn = args.distributed and args.dist_bn in ('broadcast', 'reduce')
        if spread_bn:
            distribute_bn(self.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
        last = epoch + 1 == self.schedules.num_epochs
        if (epoch + 1) % args.val_interval and not last:
            self.schedules.after_epoch(epoch + 1, None)
            return
        metrics = None
        if self.loaders.validation is not None:
            metrics = self.trainer.validate(self.loaders.validation)
            if self.task.has_ema():
                if spread_bn:
                    distribute_bn(self.task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')
                metrics = self.trainer.validate(self.loaders.validation, ema=True)
        state = self._state(epoch, args)
        rates = learning_rates(self.optimizer)
        latest = (metrics or train_metrics)[args.eval_metric]
        if self.output is not None:
            extra = {'lr_embedding': rates['embedding']} if 'embedding' in rates else {}
            if self.table is not None:
                train_metrics = {**train_metrics, **table_figures(self.table, self.trainer.position.codes)}
            with writing(self.folder):
                self.output.check()
                summary = str(self.folder / 'summary.csv')
                update_summary(epoch, {**train_metrics, **extra}, metrics, summary, lr=rates.get('network'))
                self.saver.save_checkpoint(state, epoch, float(latest))
            self._track_epoch(epoch + 1, train_metrics, metrics)
        self.trainer.saved = time.monotonic()
        self.schedules.after_epoch(epoch + 1, latest)

    def _track_epoch(self, epochs: int, train_metrics: dict[str, float], metrics: dict[str, float] | None) -> None:
        step = self._updates_before(Position(epochs))
        values = {f'train/{name}': value for name, value in train_metrics.items()}
        values |= {f'eval/{name}': value for name, value in (metrics or {}).items()}
        self.trackers.scalars(values, step)
        if self.table is not None:
            self.trackers.codes(self.table, step)


def main(argv: Sequence[str] | None = None, prog: str = 'train.py') -> int:
    """Train as the flags `argv` say and return the exit code; messages call the command `prog`."""
    if not logging.root.handlers:
        setup_default_logging()
        for library in ('httpx', 'httpx2', 'urllib3'):  # the Hub's client has one of them log every request
            logging.getLogger(library).setLevel(logging.WARNING)
    arguments = parse_args(sys.argv[1:] if argv is None else argv, prog)
    stopping = StopSignal()
    run = None
    try:
        run = Run(arguments, stopping)
        with stopping:
            run.train()
    except KeyboardInterrupt:
        print(f'{prog}: interrupted; what was not saved yet is lost', file=sys.stderr)
        return 128 + (stopping.received or signal.SIGINT)
    except Exception as error:
        code, words = ending(error, run.newest if run else None, arguments.args, stopping)
        if words:
            print(f'{prog}: error: {words}', file=sys.stderr)
        return code
    finally:
        if run is not None:
            run.close()
        leave_processes()
    return 0
