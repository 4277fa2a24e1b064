"""Lets a signal, or the loss of a process, stop a run between two updates, where a checkpoint can be written."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from torch.distributed import is_torchelastic_launched

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
        lost: which process has ended that the run needs, a loader's or its launcher, and what to do; empty otherwise.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.lost = ''
        self._time = 0.0
        self._previous: dict[int, Any] = {}
        self._launcher = os.getppid() if is_torchelastic_launched() else None

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
        """Return whether a signal asked to stop, or a process has ended without which there is no going on."""
        if self._launcher not in (None, os.getppid()):
            self.lost = self.lost or 'torchrun, which started this process, has ended.'
        return self.received is not None or bool(self.lost)

    def hold_back_torch(self) -> None:
        """Take over from torch, which raises at once where a loader's process is killed, perhaps inside an update."""
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._child_ended:
            self._previous[signal.SIGCHLD] = handler
            signal.signal(signal.SIGCHLD, self._child_ended)

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        try:
            self._previous[number](number, frame)
        except RuntimeError as error:
            self.lose_loader(error)

    def lose_loader(self, error: RuntimeError) -> None:
        """Note that a loader's process was killed, if that is what torch's error says."""
        if str(error).startswith('DataLoader worker'):
            advice = 'Where memory runs out the kernel kills them: take fewer --workers, or a smaller --batch-size.'
            self.lost = f'{str(error).strip(" .")}. {advice}'


def ignore_signals(worker_id: int, worker_init: Callable[[int], None]) -> None:
    """Initialize a loader's worker that leaves signals to the main process, which needs its batches until it stops.

    A worker that ended at a signal of its own would raise in the main process, perhaps in the middle of an update.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    worker_init(worker_id)
