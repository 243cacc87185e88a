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

_STOP_SIGNALS = [
    signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1") if name in signal.Signals.__members__
]


PATIENCE = 1.0
"""Seconds after a first SIGINT within which a second one is ignored."""


class StopSignals:
    """Records the stop signals SIGTERM, SIGINT and SIGUSR1 within its context; a second SIGINT interrupts at once.

    A second SIGINT within one second is ignored, as terminals and launchers may both send one. Outside the main thread,
    where Python delivers no signals, this does nothing.

    Args:
        launched: A launcher started this process. A launcher that is killed sends no signal, and its processes would
            run on unnoticed; so the loss of the parent process counts as SIGTERM.
        busy: Returns whether the training state is changing; errors that signal handlers raise are then deferred until
            `raise_deferred`.
    Attributes:
        received: The signal that was received, or None.
        failed: Set when an error ends the work, after which the loss of data workers is ignored.
    """

    def __init__(self, *, launched: bool = False, busy: Callable[[], bool] = lambda: False) -> None:
        self.received: signal.Signals | None = None
        self.failed = False
        self._busy = busy
        self._deferred: list[Callable[[], object]] = []
        self._parent = os.getppid() if launched else None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._received_at = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._record) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether this process has received a signal to stop."""
        if self._parent is not None and os.getppid() != self._parent:
            self.received = self.received or signal.SIGTERM
        return self.received is not None

    def defer_child_errors(self) -> None:
        """Defer torch's error for a killed data worker, which its signal handler may raise anywhere, as well."""
        number = getattr(signal, "SIGCHLD", None)
        if number is None or not self._previous_handlers or not callable(handler := signal.getsignal(number)):
            return

        def handle_later(received: int, frame: FrameType | None) -> None:
            if self.failed:
                return  # a lost worker must not disturb the save in progress
            if self._busy():
                self._deferred.append(lambda: handler(received, frame))
            else:
                handler(received, frame)

        self._previous_handlers[number] = signal.signal(number, handle_later)

    def raise_deferred(self) -> None:
        """Raise the errors that were deferred while the state was changing."""
        while self._deferred:
            self._deferred.pop(0)()

    def share(self, ranks: Ranks) -> None:
        """Share the signal that one process received with all of them."""
        received = [number for number in ranks.gather(self.received) if number is not None]
        self.received = self.received or next(iter(received), None)

    def end_as_signalled(self) -> None:
        """End the process as the stop signal would: by KeyboardInterrupt, or exit status 143 (128 + SIGTERM)."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now, again = time.monotonic(), number == signal.SIGINT and self.received is signal.SIGINT
        if again and now - self._received_at >= PATIENCE:
            if not self._busy():
                raise KeyboardInterrupt
            self._deferred.append(_raise_interrupt)
        if not again:
            self.received, self._received_at = signal.Signals(number), now


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Ignore stop signals in a data worker; its parent, which Ctrl-C reaches as well, stops it."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
