"""A lock on the run folder that the operating system drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from diffkit.errors import OptionError
from diffkit.runtime.locks import lock, open_lock_file
from diffkit.runtime.output import log

NAME = ".lock"


class RunLock:
    """A lock on a run's folder, from construction to `release` or to the end of the process; also a context manager.

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
            log(
                f"warning: the file system of {str(folder)!r} has no locks ({error.strerror}), so nothing prevents "
                f"another {work} from writing there at the same time"
            )
        if not locked:
            holder = _read_holder(self.handle)
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

    def close_inherited(self) -> None:
        """In a child process: close its copy of the lock file's handle, which would hold the lock after the parent."""
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(self.handle, probe := os.open(self.path, os.O_RDONLY)):
                self.release()
            os.close(probe)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _read_holder(handle: int) -> str:
    """Text that the holder of the lock wrote into the file, on one line."""
    text = os.read(handle, 200).decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()
