"""Forked processes, which import nothing anew: the ranks that torchrun would start, and one that is killed at work."""

import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.distributed import TCPStore

FORK = multiprocessing.get_context('fork')


def _start(work: Callable[[Connection], None], **surroundings: str) -> tuple[BaseProcess, Connection]:
    """Fork a process that works with one end of a pipe, and return it with the other."""

    def run() -> None:
        os.environ.update(surroundings)
        torch.set_num_threads(1)  # it has none of its parent's threads
        warnings.simplefilter('default')
        work(theirs)

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=run)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)  # Python 3.12
        process.start()
    theirs.close()
    return process, ours


def run_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what function(*args) gives on each of two ranks."""
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # where they meet, as torchrun's
    where = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store.port), 'WORLD_SIZE': '2'}
    where['TORCHELASTIC_USE_AGENT_STORE'] = 'True'

    def work(told: Connection) -> None:
        told.send_bytes(pickle.dumps(function(*args)))  # tensors too: told.send would share their memory

    started = dict(_start(work, **where, RANK=rank)[::-1] for rank in '01')
    found: dict[Connection, Any] = {}
    try:
        while len(found) < len(started):
            for told in wait([*started.keys() - found.keys()]):
                found[told] = pickle.loads(told.recv_bytes())  # EOFError where a rank has died
        return [found[told] for told in started]
    finally:
        for process in started.values():
            process.kill()
            process.join()


@contextmanager
def forked(function: Callable[..., Any], *args: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run function(told, *args) in a process that is killed at the end; yield it and the other end of `told`."""
    process, told = _start(lambda theirs: function(theirs, *args))
    try:
        yield process, told
    finally:
        process.kill()
        process.join()


def hold(told: Connection, word: str, *kept: Any) -> None:
    """Tell how far a fork has come, and stay there with what it has."""
    told.send(word)
    told.recv()
