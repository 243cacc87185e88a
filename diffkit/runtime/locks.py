"""Locks on open files, which the operating system drops when their holder ends, however it ends."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from diffkit.errors import DiffkitError

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""Error numbers that mean that another process holds the lock; others mean that the file system has no locks."""


def open_lock_file(path: Path, error: type[DiffkitError]) -> int:
    """Return the handle of a file to lock, created if needed; a link is never followed.

    Args:
        path: The file.
        error: What is raised if it cannot be opened, or is a link or no ordinary file.
    """
    foreign = f"{path} is a link or not an ordinary file, so that another file would be overwritten; remove it"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as cause:
        text = f"{path} cannot be written: {cause.strerror}; choose another folder"
        raise error(foreign if path.is_symlink() else text) from cause
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise error(foreign)
    return handle


def lock(handle: int, *, wait: bool = False) -> bool:
    """Lock an open file and return True, or False if it is locked already, by whatever process.

    Args:
        handle: The file.
        wait: Wait until it is free.
    Raises:
        OSError: The file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte far beyond the text, which stays readable
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return lock(handle, wait=True) if wait and sys.platform == "win32" else False  # which waits ten seconds only
    return True
