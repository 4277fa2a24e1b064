"""What both benchmarks run on: ranks that share the work, progress with its end, less at once when memory runs out."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from timm_p2be.robustness.evaluation.results import ResultFile

Item = TypeVar('Item')
Result = TypeVar('Result')
File = TypeVar('File', bound=ResultFile)
_OUT_OF_MEMORY = ('out of memory', 'not enough memory', "can't allocate memory")


class Progress(tqdm):
    """Progress through a number of images or calls, on stderr."""

    monitor_interval = 0  # no thread: processes that make images are forked

    def __init__(self, total: int, unit: str = 'image', show: bool = True) -> None:
        self.terminal = sys.stderr.isatty()
        seconds = 0.1 if self.terminal else 5.0
        super().__init__(total=total, unit=unit, disable=not show, mininterval=seconds, miniters=0, delay=seconds)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return what shows the bar: elsewhere than on a terminal, lines."""
        return tqdm.status_printer(file) if file.isatty() else lambda text: print(text, file=file, flush=True)

    def expect(self, left: int) -> None:
        """Say how much is left to do."""
        self.total = self.n + left

    def step(self, count: int, what: str) -> None:
        """Count `count` more, the last of them of `what`."""
        self.set_description(what, refresh=False)
        self.update(count)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.terminal and not self.disable:
            self.write(line, file=sys.stderr)
        elif not self.disable:
            print(line, file=sys.stderr, flush=True)


class Memory:
    """Remembers how many images at once fit into memory, for each model or attack; `say` hears of halved batches."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._fitting: dict[str, int] = {}

    def parts(self, name: str, count: int, most: int, work: Callable[[slice], Result]) -> list[Result]:
        """Return what `work` makes of slices of 0..count-1, `most` long and half as long each time memory runs out.

        Raises:
            ValueError: a single image is too much.
        """
        results, start = list[Result](), 0
        while start < count:
            size = min(self._fitting.get(name, most), count - start)
            try:
                results.append(work(slice(start, start + size)))
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not any(x in str(error).lower() for x in _OUT_OF_MEMORY):
                    raise
                if size == 1:
                    raise ValueError(f'{name} runs out of memory with a single image: {error}') from error
            else:
                start += size
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._fitting[name] = size // 2
            self.say(f'{name}: out of memory, going on with {size // 2} images at a time')
        return results


class Ranks:
    """The processes that torchrun started, or the one there is without it."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this rank's items: item i of a list is the work of rank i modulo their number."""
        return list(items[self.rank :: self.size])

    def gather(self, results: list[Result]) -> list[Result]:
        """Return the results of all ranks in the order of the items."""
        if self.size == 1:
            return results
        parts: list[list[Result]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, results)
        return [parts[i % self.size][i // self.size] for i in range(sum(len(part) for part in parts))]

    def open(self, open_file: Callable[[], File]) -> File:
        """Return the result file that the first rank opens; it alone will write it."""
        box = [open_file() if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(box)
        assert box[0] is not None
        box[0].writes = self.first
        return box[0]


def connected_ranks() -> Ranks:
    """Return the ranks that torchrun started, connected over gloo: they exchange results, no gradients.

    The connection lasts as long as the process: torchrun's ranks do not meet a second time.
    """
    size = int(os.environ.get('WORLD_SIZE', '1'))
    if size == 1:
        return Ranks(0, 1)
    if not dist.is_initialized():  # one rank's batch may take hours while the others wait
        dist.init_process_group('gloo', timeout=timedelta(days=2))
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), size)


class Runner:
    """A benchmark under way, shared by ranks of which the first shows progress."""

    def __init__(self, ranks: Ranks, unit: str, show: bool) -> None:
        self.ranks = ranks
        self.progress = Progress(0, unit, show and ranks.first)
        self.memory = Memory(self.progress.say)

    def results(self, items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Yield each item and what `work` makes of it, on every rank; as many items at a time as there are ranks."""
        for start in range(0, len(items), self.ranks.size):
            group = items[start : start + self.ranks.size]
            yield from zip(group, self.ranks.gather([work(item) for item in self.ranks.share(group)]), strict=True)


@contextmanager
def runner(unit: str, show: bool) -> Iterator[Runner]:
    """Yield what a benchmark runs on; `unit` is what its progress counts."""
    run = Runner(connected_ranks(), unit, show)
    try:
        yield run
    finally:
        run.progress.close()
