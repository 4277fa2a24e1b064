"""How far a benchmark is and when it ends: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Progress through a number of images or calls, on stderr.

    Args:
        total: what there is to do, as far as it is known; see `expect`.
        unit: what is counted.
        show: False prints nothing, on all but the first rank.
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
        self.bar = tqdm(total=total, unit=unit, dynamic_ncols=True) if show and sys.stderr.isatty() else None

    def expect(self, left: int) -> None:
        """Say how much is left to do."""
        self.total = self.done + left
        if self.bar is not None:
            self.bar.total = self.total

    def step(self, count: int, what: str) -> None:
        """Count `count` more, the last of them of `what`."""
        self.done += count
        if self.bar is not None:
            self.bar.set_description(what, refresh=False)
            self.bar.update(count)
        elif self._due() or self.done >= self.total:
            elapsed = time.monotonic() - self.start
            self.say(tqdm.format_meter(self.done, self.total, elapsed, ncols=0, prefix=what, unit=self.unit))

    def beat(self, what: str) -> None:
        """Show a sign of life from work that is not counted."""
        if self.bar is not None:
            self.bar.set_description(what)
        elif self._due():
            self.say(what)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.show:
            self.printed = time.monotonic()
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self.bar is not None:
            self.bar.close()

    def _due(self) -> bool:
        return time.monotonic() - self.printed >= self.interval
