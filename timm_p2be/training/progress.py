"""Shows how a run is doing: a bar on a terminal, plain log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from tqdm import tqdm

_logger = logging.getLogger('train')


class Progress:
    """Progress of one of `epochs` epochs of `total` updates, of which `done` were done; `show` on the primary process.

    Shown are loss parts, images per second, time left, and the share of time spent waiting for data. `track` gets them
    as well, every `interval` updates.
    """

    def __init__(
        self,
        epoch: int,
        epochs: int,
        total: int,
        done: int,
        show: bool,
        interval: int,
        track: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        self.epoch, self.epochs, self.total, self.first = epoch, epochs, total, done
        self.show, self.interval, self.track = show, max(interval, 1), track
        self.waited = 0.0
        self.start = time.time()
        self.bar = None
        if show and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=f'epoch {epoch}', unit='update', dynamic_ncols=True)

    def timed(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of `loader` and add up the time spent waiting for them."""
        batches = iter(loader)
        while True:
            asked = time.time()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.time() - asked
            yield batch

    def restart(self) -> None:
        """Forget the time so far: batches that are passed over are no training."""
        self.start, self.waited = time.time(), 0.0

    def report(self, update: int, images: int, parts: dict[str, float], rates: dict[str, float]) -> None:
        """Show the state after `update` updates of the epoch, of which this process saw `images` images."""
        now = self.speed(images)
        each = (time.time() - self.start) / (update - self.first)
        left, later = each * (self.total - update), each * self.total * (self.epochs - 1 - self.epoch)
        run_left = timedelta(seconds=round(left + later))
        due = self.show and (update % self.interval == 0 or update == self.total)
        if due and self.track is not None:
            values = {f'train/{name}': value for name, value in parts.items()}
            values |= {f'lr/{name}': rate for name, rate in rates.items()}
            self.track({**values, **now}, self.epoch * self.total + update)
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(
                f'{_line(parts)} {now["images_per_second"]:.0f} img/s, run ends in {run_left}', refresh=False
            )
        elif due:
            _logger.info(
                f'Train: {self.epoch} [{update:>4d}/{self.total}]  {_line(parts)}  '
                f'{now["images_per_second"]:.1f} img/s  data wait {100 * now["data_wait"]:.0f} %  '
                f'lr {" ".join(f"{name} {rate:.3e}" for name, rate in rates.items())}  '
                f'epoch ends in {timedelta(seconds=round(left))}, run in {run_left} and validation'
            )

    def speed(self, images: int) -> dict[str, float]:
        """Return images per second and the share of time spent waiting for data, so far."""
        elapsed = max(time.time() - self.start, 1e-9)
        return {'images_per_second': images / elapsed, 'data_wait': self.waited / elapsed}

    def close(self) -> None:
        """Leave the terminal clean."""
        if self.bar is not None:
            self.bar.close()


def _line(parts: dict[str, float]) -> str:
    return ' '.join(f'{name} {value:#.4g}' for name, value in parts.items())
