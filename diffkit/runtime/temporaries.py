"""Temporary files and folders, while they are written: their names, and the removal of those of killed processes.

    .NAME.0123456789abcdef.tmp      will be renamed to NAME

The process that writes one holds a lock on it, which the operating system releases when the process ends. Any process
may remove one without a lock, even in a folder that several machines share.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffkit.runtime.locks import lock

_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8,32}\.tmp")
_DAY = 24 * 3600.0
"""Seconds after the last change before a temporary file is removed if the file system has no locks."""


def is_temporary(path: Path) -> bool:
    """Return whether a file or folder has the name of a temporary one."""
    return _NAME.fullmatch(path.name) is not None


@contextmanager
def replacement(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file or folder that the block renames to ``path``; if it does not, it is removed.

    Args:
        path: The final path; temporary files for it from killed processes are removed first.
        folder: Create a folder instead of a file.
    """
    sweep(path.parent, path.name)
    temporary, handle = _create_temporary(path, folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of killed processes in a folder; those of running processes stay.

    Args:
        folder: The folder, which may be missing.
        name: Remove only those that would have become this file; by default all, for folders that only diffkit uses.
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and name in (None, match[1]):
                _remove_abandoned(path)


def _create_temporary(path: Path, folder: bool) -> tuple[Path, int | None]:
    """Return a new temporary file or folder, and the handle with the lock of its writer."""
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"  # mkstemp's files only the owner can read
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        if sys.platform == "win32":  # there, an open file can neither be renamed nor removed
            return temporary, None
        with contextlib.suppress(FileNotFoundError):  # another process may remove it before it is locked
            handle = os.open(temporary, (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW)
            with contextlib.suppress(OSError):  # a file system without locks
                lock(handle, wait=True)
            if _is_same_file(temporary, handle):
                return temporary, handle
            os.close(handle)


def _is_same_file(path: Path, handle: int) -> bool:
    """Whether a path still is that of an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file or folder unless a living process holds it."""
    found = os.lstat(path)
    if sys.platform == "win32" or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        _remove(path)
        return
    handle = os.open(path, (os.O_RDONLY if stat.S_ISDIR(found.st_mode) else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        if _is_abandoned(handle):
            _remove(path)
    finally:
        os.close(handle)


def _is_abandoned(handle: int) -> bool:
    """Lock an open file and return True; False if another process holds the lock."""
    try:
        return lock(handle)
    except OSError:  # a file system without locks
        return time.time() - os.fstat(handle).st_mtime > _DAY


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder if it exists and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
