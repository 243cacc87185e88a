"""Stop signals: a handler records the signal, and training checks for it between steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from diffkit.runtime.distributed import Ranks

_WATCHED = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1") if name in signal.Signals.__members__]


PATIENCE = 1.0
"""Seconds."""


class StopSignals:
    """Records SIGTERM, SIGINT and SIGUSR1 within its context; a second SIGINT interrupts at once.

    A second SIGINT within one second is ignored: terminals and launchers may both send it.

    Does nothing outside the main thread, where Python delivers no signals.

    Args:
        launched: A launcher started this process. If the launcher is killed it sends no signal, and its processes
            would run on unnoticed; so the loss of the parent counts as SIGTERM.
        busy: Returns whether the state is changing, so that errors that signals raise have to wait for `interrupt`.
    Attributes:
        received: The signal that came, or None.
        failed: Set when an error ends the work, after which lost data workers are ignored.
    """

    def __init__(self, *, launched: bool = False, busy: Callable[[], bool] = lambda: False) -> None:
        self.received: signal.Signals | None = None
        self.failed = False
        self._busy = busy
        self._waiting: list[Callable[[], object]] = []
        self._parent = os.getppid() if launched else None
        self._before: dict[signal.Signals, Any] = {}
        self._when = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether this process has received a signal to stop."""
        if self._parent is not None and os.getppid() != self._parent:
            self.received = self.received or signal.SIGTERM
        return self.received is not None

    def hold_back_children(self) -> None:
        """Make torch's error for a killed data worker, which a signal raises anywhere, wait for `interrupt` too."""
        number = getattr(signal, "SIGCHLD", None)
        if number is None or not self._before or not callable(handler := signal.getsignal(number)):
            return

        def noted(received: int, frame: FrameType | None) -> None:
            if self.failed:
                return  # a lost worker must not disturb the save in progress
            if self._busy():
                self._waiting.append(lambda: handler(received, frame))
            else:
                handler(received, frame)

        self._before[number] = signal.signal(number, noted)

    def interrupt(self) -> None:
        """Raise the errors that had to wait."""
        while self._waiting:
            self._waiting.pop(0)()

    def share(self, ranks: Ranks) -> None:
        """Share the signal that one process received with all of them."""
        received = [number for number in ranks.gather(self.received) if number is not None]
        self.received = self.received or next(iter(received), None)

    def leave(self) -> None:
        """End as the signal would have ended the process: KeyboardInterrupt, or exit status 143 (128 + SIGTERM)."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, again = time.monotonic(), number == signal.SIGINT and self.received is signal.SIGINT
        if again and now - self._when >= PATIENCE:
            if not self._busy():
                raise KeyboardInterrupt
            self._waiting.append(_interrupt)
        if not again:
            self.received, self._when = signal.Signals(number), now


def _interrupt() -> None:
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """In a data worker: leave stopping to the parent, which Ctrl-C reaches as well."""
    for number in _WATCHED:
        signal.signal(number, signal.SIG_IGN)
