"""Files and folders that are left out of data: those that programs and operating systems store next to images."""

from __future__ import annotations

import os
from collections.abc import Iterable

_SERVICE = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
_SYSTEM = ("/proc", "/sys", "/dev")
_MEMORY = "/dev/shm"
"""The only folder below /dev with files of users."""


def folder_reason(name: str) -> str | None:
    """Return why a folder of this name is left out, or None."""
    if name.startswith("."):
        return "a hidden folder"
    return "a folder of the operating system" if name in _SERVICE else None


def file_reason(name: str) -> str | None:
    """Return why a file of this name is left out although it has the suffix of an image, or None."""
    return "metadata of macOS about a file" if name.startswith("._") else None


def path_reason(folders: Iterable[str], name: str) -> str | None:
    """Return why a file in these folders is left out, or None."""
    reasons = (folder_reason(folder) for folder in folders if folder not in (".", ".."))
    return next((reason for reason in reasons if reason), None) or file_reason(name)


def is_system_path(real: str) -> bool:
    """Return whether a resolved path is of the system's processes and devices, which have no end."""
    return any(_is_within(real, top) for top in _SYSTEM) and not _is_within(real, _MEMORY)


def is_above(real: str, root: str) -> bool:
    """Return whether a resolved folder is another one or contains it."""
    return _is_within(root, real)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
