"""Work shared by the processes that torchrun starts; without torchrun there is one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar('T')


class Processes:
    """The processes of one run: item i of a list is the work of process i modulo their number.

    Attributes:
        rank: number of this process.
        size: number of processes.

    Example:
        >>> alone = Processes(0, 1)
        >>> alone.share([1, 2, 3]), alone.gather(['a', 'b', 'c'])
        ([1, 2, 3], ['a', 'b', 'c'])
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the items that are this process's work."""
        return list(items[self.rank :: self.size])

    def gather(self, results: list[T]) -> list[T]:
        """Return the results of all processes in the order of the items, on the first; elsewhere an empty list."""
        if self.size == 1:
            return results
        parts: list[list[T]] | None = [[] for _ in range(self.size)] if self.first else None
        dist.gather_object(results, parts)
        if parts is None:
            return []
        return [parts[i % self.size][i // self.size] for i in range(sum(len(part) for part in parts))]

    def broadcast(self, value: T) -> T:
        """Return the first process's value, on all."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def processes() -> Iterator[Processes]:
    """Yield the processes that torchrun started, connected over gloo: they exchange results, no gradients."""
    size = int(os.environ.get('WORLD_SIZE', '1'))
    if size == 1:
        yield Processes(0, 1)
        return
    own = not dist.is_initialized()
    if own:  # one process may generate a cache for hours while the others wait
        dist.init_process_group('gloo', timeout=timedelta(days=2))
    try:
        yield Processes(dist.get_rank(), size)
    finally:
        if own:
            dist.destroy_process_group()
