"""Names of files as text that can be shown: no terminal codes, no line breaks, and no bytes that are not UTF-8."""

from __future__ import annotations

import os

from diffkit.runtime import output


def printable(name: str | os.PathLike[str]) -> str:
    """Return a name with everything that cannot be printed as an escape, such as ``\\x1b``."""
    return output.printable(os.fsencode(os.fspath(name)).decode(errors="backslashreplace"))
