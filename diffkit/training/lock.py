"""A lock on the run folder that the operating system drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from diffkit.errors import OptionError
from diffkit.runtime.locks import lock, open_lock_file
from diffkit.training.logs import say

NAME = ".lock"


class RunLock:
    """Held from construction to `release`, or to the end of the process; also a context manager.

    Where the file system has no locks, a warning is logged and the work goes on without one.

    Args:
        folder: The folder.
        work: Name of the holder's work, for the message.
    Raises:
        OptionError: Another process, or this one, holds it already; or no file can be written in the folder.
    """

    def __init__(self, folder: Path, work: str = "training"):
        self.path = folder / NAME
        self.handle = open_lock_file(self.path, OptionError)
        try:
            locked = lock(self.handle)
        except OSError as error:
            locked = True
            say(
                f"warning: the file system of {str(folder)!r} has no locks ({error.strerror}), so nothing prevents "
                f"another {work} from writing there at the same time"
            )
        if not locked:
            holder = _holder(self.handle)
            os.close(self.handle)
            raise OptionError(
                f"out {str(folder)!r} is being written by another {work}{f' ({holder})' if holder else ''}; "
                "wait for it, or choose another folder"
            )
        with contextlib.suppress(OSError):  # the name of the holder is for messages only
            os.ftruncate(self.handle, 0)
            os.write(self.handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            os.close(self.handle)

    def forget(self) -> None:
        """In a child process: close its copy of the handle, if it has one, which would outlive the parent's lock."""
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(self.handle, probe := os.open(self.path, os.O_RDONLY)):
                self.release()
            os.close(probe)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _holder(handle: int) -> str:
    """Text that the holder of the lock wrote, on one line."""
    text = os.read(handle, 200).decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()
