"""Trains any timm model, encoded or not, by the objective of the P2BE paper (Eq. 10), or adversarially (Eq. 11, 12).

Built on timm's library; flags, output folder, summary.csv and checkpoints are those of timm's train.py
(huggingface/pytorch-image-models). Recipes are in train_scripts/recipes. Scale out with torchrun.

Exit codes: 0 finished, 1 diverged, 2 wrong flags, data or checkpoint, 130 and 143 stopped by Ctrl-C and SIGTERM after
a checkpoint was written.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from timm.models import safe_model_name
from timm.utils import (
    CheckpointSaver,
    distribute_bn,
    get_outdir,
    is_primary,
    random_seed,
    setup_default_logging,
    trim_summary,
    update_summary,
)

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.optim import learning_rates
from timm_p2be.training import building
from timm_p2be.training.arguments import Arguments, parse_args
from timm_p2be.training.checkpoints import (
    Position,
    check_checkpoint,
    newest_checkpoint,
    resume,
    resume_ema,
)
from timm_p2be.training.embedding_flags import adopt_table, pinned
from timm_p2be.training.epoch import Diverged, Trainer
from timm_p2be.training.loading import build_loaders
from timm_p2be.training.schedules import Schedules
from timm_p2be.training.stopping import Interrupted, StopSignal

_logger = logging.getLogger('train')


class Run:
    """A training run: everything that `main` builds, and the loop over epochs.

    Raises:
        ValueError: flags, data or checkpoint are wrong; nothing has been written then.
    """

    def __init__(self, arguments: Arguments, stopping: StopSignal) -> None:
        self.args = args = arguments.args
        device = building.build_device(args, arguments.explicit)
        if is_primary(args):
            for note in arguments.notes:
                _logger.info(note)
        found = read_checkpoint(args.resume, what='--resume') if args.resume else None
        if found is not None:
            check_checkpoint(found.raw, args, arguments.explicit)
            adopt_table(args, found)
        elif args.p2be_embedding:
            args.p2be_embedding = pinned(args.p2be_embedding)
        random_seed(args.seed, args.rank)
        model = building.build_model(args, device)
        self.loaders = build_loaders(args, model, device)
        self.task = building.build_task(args, model, device, self.loaders.data_config)
        self.optimizer = building.build_optimizer(args, model)
        autocast, scaler = building.build_precision(args, device)
        self.position = Position()
        if found is not None:
            optimizer = None if args.no_resume_opt else self.optimizer
            self.position = resume(found.raw, args.resume, self.task, optimizer, scaler)
        if args.start_epoch is not None:
            self.position = Position(args.start_epoch)
        if args.model_ema:
            self.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
            if found is not None:
                resume_ema(found.raw, self.task)
        if args.torchcompile:
            building.compile_task(args, self.task)
        if args.distributed:
            ids = [device] if device.type == 'cuda' else None
            self.task.prepare_distributed(device_ids=ids, broadcast_buffers=not args.no_ddp_bb)
        self.schedules = Schedules(args, self.optimizer, -(-len(self.loaders.training) // args.grad_accum_steps))
        self.folder, self.saver = self._open_output(scaler)
        self.trainer = Trainer(
            args, self.task, self.optimizer, self.schedules, autocast, scaler, device, stopping, self._save_recovery
        )

    def _open_output(self, scaler: Any) -> tuple[Path | None, CheckpointSaver | None]:
        args = self.args
        if not is_primary(args):
            return None, None
        size = self.loaders.data_config['input_size'][-1]
        name = f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}-{size}'
        folder = Path(get_outdir(args.output or './output/train', args.experiment or name))
        saver = CheckpointSaver(
            model=self.task.get_trainable_module(),
            optimizer=self.optimizer,
            args=args,
            amp_scaler=scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
            decreasing=args.eval_metric == 'loss',
            max_history=args.checkpoint_hist,
            task=self.task,
        )
        if args.resume and Path(args.resume).resolve().parent == folder.resolve():
            saver.load_state_dict_from_checkpoint(args.resume)
        trim_summary(str(folder / 'summary.csv'), self.position.epoch)
        flags = {name: value for name, value in vars(args).items() if name not in building.PROCESS_FIELDS}
        if args.lr_base_scale:
            flags['lr'] = None  # computed from the base: as a recipe, the file computes it again
        (folder / 'args.yaml').write_text(yaml.safe_dump(flags, default_flow_style=False))
        return folder, saver

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

    def _save_recovery(self) -> None:
        self._check_weights()
        if self.saver is not None:
            position = self.trainer.position
            # timm has no entry for it
            self.saver.args = argparse.Namespace(**vars(self.args), position=asdict(position))
            self.saver.save_recovery(position.epoch, max(position.update - 1, 0))  # timm counts updates from 0
            self.saver.args = self.args

    def _check_weights(self) -> None:
        model = self.task.trainable_module
        if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            raise Diverged(f'Weights are no longer finite at {self.trainer.where()}.')

    def train(self) -> None:
        """Train from the run's position to its last epoch, or raise Diverged, or Interrupted after a checkpoint."""
        self._log_start()
        self.schedules.start(self.position.epoch, self.position.update)
        try:
            for epoch in range(self.position.epoch, self.schedules.num_epochs):
                self._seed_epoch(epoch)
                start = self.position if epoch == self.position.epoch else Position(epoch)
                train_metrics = self.trainer.train(self.loaders.training, start)
                self._finish_epoch(epoch, train_metrics)
        except Interrupted:
            self._save_recovery()
            raise
        if self.saver is not None and self.saver.best_metric is not None:
            best = self.saver
            _logger.info(f'Best {self.args.eval_metric}: {best.best_metric:.4f} (epoch {best.best_epoch})')

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
        self._check_weights()
        rates = learning_rates(self.optimizer)
        latest = (metrics or train_metrics)[args.eval_metric]
        if self.folder is not None and self.saver is not None:
            extra = {'lr_embedding': rates['embedding']} if 'embedding' in rates else {}
            update_summary(
                epoch, {**train_metrics, **extra}, metrics, str(self.folder / 'summary.csv'), lr=rates.get('network')
            )
            self.saver.save_checkpoint(epoch, metric=latest)
        self.schedules.after_epoch(epoch + 1, latest)

    def newest_checkpoint(self) -> str:
        """Return the checkpoint to go on from, if one was written."""
        newest = newest_checkpoint(self.folder) if self.folder else None
        return str(newest or '(none was written yet)')


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
    except Interrupted:
        number = stopping.received or signal.SIGTERM  # another process got it
        if run is not None and is_primary(run.args):
            _logger.warning(f'Stopped by {signal.Signals(number).name}; go on with --resume {run.newest_checkpoint()}')
        return 128 + number
    except Diverged as error:
        if run is not None and is_primary(run.args):
            kept = f'the checkpoints before it are kept: {run.newest_checkpoint()}'
            print(f'{prog}: error: {error} Stopped; {kept}. Lower --lr, or set --clip-grad.', file=sys.stderr)
        return 1
    except (ValueError, NotImplementedError, OSError) as error:
        if run is not None:  # no flag's fault
            raise
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'{prog}: interrupted; what was not saved yet is lost', file=sys.stderr)
        return 128 + (stopping.received or signal.SIGINT)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
