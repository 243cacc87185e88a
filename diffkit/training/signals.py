"""Being told to stop: the signal is noted, and training looks at the note between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_WATCHED = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered; a second SIGINT interrupts at once.

    Does nothing outside the main thread, where Python delivers no signals.

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """End as the signal would have ended the process: KeyboardInterrupt, or exit status 143 (128 + SIGTERM)."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def ignore_signals() -> None:
    """In a data worker: leave stopping to the parent, which Ctrl-C reaches as well."""
    for number in _WATCHED:
        signal.signal(number, signal.SIG_IGN)
