"""An audit hook that counts writes in a folder, and brings about a fault at one of them.

A write is whatever Python's audit events show: opening a file to write, making, renaming or removing one.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Fault(NamedTuple):
    """What happens at a write.

    Attributes:
        name: "kill", "full" (this write fails), "full_from" (and all that need room after it).
        at: Number of the write, from 1.
    """

    name: str
    at: int


class Watch:
    """An audit hook for ``sys.addaudithook``.

    Args:
        room: The folder.
        fault: What it brings about; None only counts.
        thread: Name of the thread whose writes count; by default those of all.
    Attributes:
        count: Writes so far.
    """

    def __init__(self, room: Path, fault: Fault | None, thread: str | None = None):
        self.room, self.fault, self.thread = Path(os.path.realpath(room)), fault, thread
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not (event in _CHANGES or (event == "open" and _to_write(arguments))):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else None
        if path is None or not (self.room / path).is_relative_to(self.room):
            return
        if self.thread not in (None, threading.current_thread().name):
            return
        self.count += 1
        if self.fault is None or self.count < self.fault.at:
            return
        if self.fault.name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        needs_room = event in ("open", "os.mkdir", "os.rename", "os.link", "os.symlink")
        if needs_room and (self.count == self.fault.at or self.fault.name == "full_from"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _to_write(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
