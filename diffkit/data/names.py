"""File names as printable text, without terminal codes, line breaks and bytes that are not UTF-8."""

from __future__ import annotations

import os

from diffkit.runtime import output


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name with unprintable characters escaped, such as ``\\x1b``."""
    return output.printable(os.fsencode(os.fspath(name)).decode(errors="backslashreplace"))
