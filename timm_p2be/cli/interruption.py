"""How long commands end: with a message of what is kept, files closed, temporary ones removed."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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


def run_long(parser: argparse.ArgumentParser, run: Callable[[], int], kept: Callable[[], str]) -> int:
    """Return the exit code of a command that takes long: its own, or 130 when it is interrupted.

    Args:
        parser: exits with 2 and the message of a ValueError, of a missing package or an OSError.
        run: the command.
        kept: says what of its work remains.
    """
    try:
        with terminated_as_interrupt():
            return run()
    except (ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f'{error}. {kept()}')
    except KeyboardInterrupt:
        print(f'{parser.prog}: interrupted. {kept()}', file=sys.stderr)
        return 130
