"""The processes of a run: how they find each other, and how one of them learns that another is gone."""

import argparse
import gc
import multiprocessing
import os
import sys
import traceback
from datetime import timedelta

import torch
from timm.utils import is_distributed_env, world_info_from_env

PROCESS_FIELDS = ('rank', 'local_rank', 'world_size', 'distributed')  # what `join_processes` adds to the flags
_GLOO = ('/gloo/', 'Application timeout caused pair closure')  # most of gloo's errors begin with a path of its source


def join_processes(args: argparse.Namespace) -> torch.device:
    """Return the device of this process after it joined the others of its run; sets what PROCESS_FIELDS names.

    As timm's `init_distributed_device`, whose processes wait for each other as long as PyTorch's default says.
    """
    device = torch.device(args.device)
    args.distributed = is_distributed_env()
    args.local_rank, args.rank, args.world_size = world_info_from_env() if args.distributed else (0, 0, 1)
    if args.distributed:
        os.environ.update(RANK=str(args.rank), WORLD_SIZE=str(args.world_size))  # where Slurm set its own names only
        torch.distributed.init_process_group(
            torch.distributed.get_default_backend_for_device(device.type), timeout=timedelta(seconds=args.dist_timeout)
        )
        if device.type != 'cpu':
            device = torch.device(device.type, args.local_rank)
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)
    return device


def is_loss_of_process(error: RuntimeError) -> bool:
    """Return whether another process of the run has ended, or has not answered in time: gloo's errors have no class."""
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _GLOO)


def leave_processes() -> None:
    """End this process's part in a run, however it ended, and the processes of its loaders."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # Loaders' processes are deaf to the signal by which an ending process ends them, and would be waited for: first
    # drop the loaders that an error's frames hold (torch raises if a process of a live one dies), then end them.
    traceback.clear_frames(sys.exc_info()[2])
    gc.collect()
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
