"""Folders and files that programs and operating systems store next to images; folders and archives skip them."""

from __future__ import annotations

import os
from collections.abc import Iterable

_SERVICE = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
_SYSTEM = ("/proc", "/sys", "/dev")
_MEMORY = "/dev/shm"
"""The one folder below /dev that holds users' files."""


def folder_reason(name: str) -> str | None:
    """Return why a folder of this name is left out, or None."""
    if name.startswith("."):
        return "a hidden folder"
    return "a folder of the operating system" if name in _SERVICE else None


def file_reason(name: str) -> str | None:
    """Return why a file of this name is left out though it ends as an image does, or None."""
    return "metadata of macOS about a file" if name.startswith("._") else None


def path_reason(folders: Iterable[str], name: str) -> str | None:
    """Return why a file in these folders is left out, or None."""
    reasons = (folder_reason(folder) for folder in folders if folder not in (".", ".."))
    return next((reason for reason in reasons if reason), None) or file_reason(name)


def is_of_the_system(real: str) -> bool:
    """Return whether a resolved path is one of processes and devices, which are not files and have no end."""
    return any(_is_within(real, top) for top in _SYSTEM) and not _is_within(real, _MEMORY)


def is_above(real: str, root: str) -> bool:
    """Return whether a resolved folder is, or holds, another one."""
    return _is_within(root, real)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
