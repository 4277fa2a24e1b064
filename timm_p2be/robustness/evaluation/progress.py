"""How far a benchmark is and when it ends: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm


class Progress:
    """Progress through a known number of images, on stderr.

    Args:
        total: images to measure.
        unit: what is counted.
        show: False prints nothing, on all but the first process.
        interval: seconds between two lines where there is no terminal.

    Example:
        >>> progress = Progress(100, show=False)
        >>> progress.step(50, 'fog 3')
        >>> progress.close()
    """

    def __init__(self, total: int, unit: str = 'image', show: bool = True, interval: float = 5.0) -> None:
        self.total, self.unit, self.show, self.interval = total, unit, show, interval
        self.done = 0
        self.start = self.printed = time.monotonic()
        self.bar: tqdm | None = None
        if show and sys.stderr.isatty():
            self.bar = tqdm(total=total, unit=unit, dynamic_ncols=True)

    def step(self, count: int, what: str) -> None:
        """Count `count` more images, the last of them of `what`."""
        self.done += count
        if self.bar is not None:
            self.bar.set_description(what, refresh=False)
            self.bar.update(count)
        elif self.show and (self._due() or self.done >= self.total):
            elapsed = time.monotonic() - self.start
            left = timedelta(seconds=round(elapsed / max(self.done, 1) * (self.total - self.done)))
            speed = self.done / max(elapsed, 1e-9)
            self._print(f'[{self.done}/{self.total} {self.unit}s] {what}  {speed:.0f}/s  ends in {left}')

    def beat(self, what: str) -> None:
        """Show a sign of life from work that is not counted."""
        if self.bar is not None:
            self.bar.set_description(what)
        elif self.show and self._due():
            self._print(what)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif self.show:
            self._print(line)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self.bar is not None:
            self.bar.close()

    def _due(self) -> bool:
        return time.monotonic() - self.printed >= self.interval

    def _print(self, line: str) -> None:
        self.printed = time.monotonic()
        print(line, file=sys.stderr, flush=True)
