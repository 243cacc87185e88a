"""A lock on the run folder that the operating system drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from pathlib import Path

from diffkit.errors import OptionError
from diffkit.runtime.output import log

NAME = ".lock"
_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""Error numbers of a lock that another process holds; any other means that the file system has no locks."""


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
        self.handle = _open_lock_file(self.path)
        try:
            _acquire(self.handle)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                holder = _read_holder(self.handle)
                os.close(self.handle)
                raise OptionError(
                    f"out {str(folder)!r} is being written by another {work}{f' ({holder})' if holder else ''}; "
                    "wait for it, or choose another folder"
                ) from error
            log(
                f"warning: the file system of {str(folder)!r} has no locks ({error.strerror}), so nothing prevents "
                f"another {work} from writing there at the same time"
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


def _open_lock_file(path: Path) -> int:
    """Open the lock file, creating it if needed; never through a link."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        if path.is_symlink():
            raise OptionError(_not_regular_text(path)) from error
        raise OptionError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise OptionError(_not_regular_text(path))
    return handle


def _not_regular_text(path: Path) -> str:
    return f"{path} is a link or not an ordinary file, so that another file would be overwritten; remove it"


def _read_holder(handle: int) -> str:
    """Text that the holder of the lock wrote into the file, on one line."""
    text = os.read(handle, 200).decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


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
