"""Lets a signal stop a run between two updates, where a checkpoint can be written."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

# what batch systems send before they end a job is SIGTERM or, by choice, SIGUSR1; a closed terminal sends SIGHUP
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_REPEAT_SECONDS = 3.0  # launchers such as torchrun pass on a signal that the whole process group got already


class Interrupted(Exception):
    """A signal asked the run to stop: all processes at the same place, or this one `alone`."""

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone


class StopSignal:
    """Inside a `with` block, remembers the first of STOP_SIGNALS; a later second one raises KeyboardInterrupt.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> 'StopSignal':
        kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # by nohup
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS if number not in kept}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > _REPEAT_SECONDS:
            raise KeyboardInterrupt

    def __call__(self) -> bool:
        """Return whether a signal asked to stop."""
        return self.received is not None


def ignore_signals(worker_id: int, worker_init: Callable[[int], None]) -> None:
    """Initialize a loader's worker that leaves signals to the main process, which needs its batches until it stops.

    A worker that ended at a signal of its own would raise in the main process, perhaps in the middle of an update.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    worker_init(worker_id)
