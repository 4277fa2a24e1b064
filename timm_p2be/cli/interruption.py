"""How long commands end: with a message of what is kept, files closed, temporary ones removed."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_p2be.locks import FolderLock

KEPT = 'Whatever was finished is kept in --output; the same command again goes on from there.'  # of a benchmark


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt within the block, as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def alone_in(output: Path, locked: bool) -> Iterator[None]:
    """Keep other benchmarks out of the folder `output` within the block, if it is to be `locked`."""
    lock = FolderLock(output, 'benchmark.lock', '--output') if locked else None
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def run_long(parser: argparse.ArgumentParser, run: Callable[[], int], kept: str = '') -> int:
    """Return the exit code of a command: its own, 130 when interrupted (`kept` says what remains), 2 after an error."""
    try:
        with terminated_as_interrupt():
            return run()
    except BrokenPipeError:  # a reader that has seen enough, which `main` knows
        raise
    except (ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f'{error}. {kept}'.rstrip())
    except KeyboardInterrupt:
        print(f'{parser.prog}: interrupted. {kept}'.rstrip(), file=sys.stderr)
        return 130
