"""What an error that ended a run means: its exit code, and what to do next."""

import argparse
import logging
import signal
from collections.abc import Callable

import torch
from timm.utils import is_primary

from timm_p2be.data.image_files import UnreadableImage, last_message
from timm_p2be.training.checkpoints import Diverged
from timm_p2be.training.output import CannotWrite
from timm_p2be.training.processes import is_loss_of_process
from timm_p2be.training.stopping import Interrupted, StopSignal

_logger = logging.getLogger('train')

_CANNOT_WRITE, _LOST = 74, 75  # EX_IOERR and EX_TEMPFAIL of BSD's sysexits.h


def ending(
    error: Exception, newest: Callable[[], str] | None, args: argparse.Namespace, stopping: StopSignal
) -> tuple[int, str]:
    """Return exit code and message, if any, of a run that an error ended; raise what is for us to mend.

    `newest` returns the checkpoint to go on from; None before the run was built.
    """
    kept = newest or (lambda: 'auto')
    match error:
        case Interrupted() if stopping() and not stopping.received:  # asked again: another may have seen it first
            return _LOST, f'{stopping.lost} Stopped; go on with --resume {kept()}'
        case Interrupted():
            if is_primary(args):
                by = signal.Signals(stopping.received).name if stopping.received else 'another process'
                _logger.warning(f'Stopped by {by}; go on with --resume {kept()}')
            return 128 + (stopping.received or signal.SIGTERM), ''
        case Diverged():
            before = f'Stopped; the checkpoints before it are kept: {kept()}'
            return 1, f'{error} {before}. Lower --lr, or set --clip-grad.' if is_primary(args) else ''
        case torch.OutOfMemoryError():
            lower = 'Lower --batch-size and raise --grad-accum-steps as much: the images of an update stay the same.'
            return 2, f'--batch-size {args.batch_size}: {error} {lower}'
        case CannotWrite():
            return _CANNOT_WRITE, f'{error} Stopped; the newest sound checkpoint: {kept()}' if newest else f'{error}'
        case UnreadableImage() if newest:
            return 2, f'{last_message(error)} Stopped; go on with --resume {kept()}'
        case ValueError() | NotImplementedError() | OSError() if not newest:  # later they are no flag's fault
            return 2, f'{error}'
        case RuntimeError() if is_loss_of_process(error):
            lost = f'process {args.rank} of {args.world_size}: another process has ended, or has not answered'
            stopped = f' Stopped; go on with --resume {kept()}' if newest else ''
            return _LOST, f'{lost} for the {args.dist_timeout} seconds of --dist-timeout.{stopped} ({error})'
    raise error
