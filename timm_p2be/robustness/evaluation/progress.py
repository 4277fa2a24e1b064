"""How far a benchmark is and when it ends: a bar on a terminal, a line every few seconds elsewhere."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class Progress(tqdm):
    """Progress through a number of images or calls, on stderr.

    Example:
        >>> progress = Progress(100, show=False)
        >>> progress.step(50, 'fog 3')
        >>> progress.close()
    """

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
        """Count `count` more, the last of them of `what`; 0 is a sign of life from work that is not counted."""
        self.set_description(what, refresh=False)
        self.update(count)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.terminal and not self.disable:
            self.write(line, file=sys.stderr)
        elif not self.disable:
            print(line, file=sys.stderr, flush=True)
