"""A lock on the run folder that the operating system drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

from diffkit._errors import OptionError

NAME = ".lock"


class RunLock:
    """Held from construction to `release`, or to the end of the process; also a context manager.

    Args:
        folder: The folder.
        work: What its holders do, for the message.
    Raises:
        OptionError: Another process, or another holder in this one, has it.
    """

    def __init__(self, folder: Path, work: str = "training"):
        self.path = folder / NAME
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _acquire(self.handle)
        except OSError as error:
            holder = os.read(self.handle, 200).decode(errors="replace").strip()
            os.close(self.handle)
            raise OptionError(
                f"out {str(folder)!r} is being written by another {work}{f' ({holder})' if holder else ''}; "
                "wait for it, or choose another folder"
            ) from error
        os.ftruncate(self.handle, 0)
        os.write(self.handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let others have it."""
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


def _acquire(handle: int) -> None:
    """Lock or raise `OSError` at once. Byte 1 GiB is locked on Windows, so that the text stays readable."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
