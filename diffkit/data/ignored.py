"""Patterns of files that a source of images leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from diffkit.errors import DataError, nearest


def split_ignored(names: Sequence[str], ignore: Sequence[str], where: Path) -> list[str | None]:
    """Return for each file the pattern that leaves it out, or None.

    Args:
        names: Paths of the files in the folder or archive, with "/" between folders.
        ignore: Patterns with ``*``, ``?`` and ``[...]``: one without "/" is compared with the name of the file and of
            each folder that it is in, one with "/" with the whole path.
        where: The folder or archive, for the message.
    Raises:
        DataError: A pattern matches no file.
    """
    found = [next((pattern for pattern in ignore if _matches(name, pattern)), None) for name in names]
    for pattern in ignore:
        if not any(_matches(name, pattern) for name in names):
            parts = sorted({part for name in names for part in name.split("/")})
            near = nearest(pattern, parts)
            like = f"; did you mean {near!r}?" if near else f" (the first is {names[0]!r})" if names else ""
            raise DataError(f"ignore {pattern!r} matches none of the {len(names)} images in {str(where)!r}{like}")
    return found


def _matches(name: str, pattern: str) -> bool:
    if "/" in pattern:
        return fnmatchcase(name, pattern.removesuffix("/")) or fnmatchcase(name, f"{pattern.removesuffix('/')}/*")
    return any(fnmatchcase(part, pattern) for part in _parts(name))


def _parts(name: str) -> Iterator[str]:
    yield from name.split("/")
