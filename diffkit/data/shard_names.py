"""Which tar archives of images a path names; imports little, as the command line looks at every folder."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from diffkit.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")


def list_shards(path: Path) -> tuple[Path, ...]:
    """Return the tar files that a path names: one, those of a folder, or those of a pattern, in order.

    A pattern has braces, as in ``train-{000..009}.tar`` or ``{a,b}.tar``, whose files must all be there; or the signs
    ``*``, ``?`` and ``[...]``, for the files that are there, sorted.

    Raises:
        DataError: There is none, or one is missing.
    """
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if is_shard(each.name))
    elif path.exists():
        found = [path]
    else:
        found = [Path(each) for text in _expand_braces(str(path)) for each in _matching(text)]
    missing = [each for each in found if not each.is_file()]
    if not found or missing:
        what = f"{str(missing[0])!r} is not there" if missing else f"{str(path)!r} names no .tar file"
        raise DataError(f"{what}; name a .tar file, a folder of them, or a pattern such as 'train-{{000..009}}.tar'")
    return tuple(found)


def is_shard(name: str) -> bool:
    """Return whether a file of this name is taken as a tar archive."""
    return name.endswith(".tar") and not name.startswith(".")


def is_path_of_shards(path: Path) -> bool:
    """Return whether a path names tar archives: by its ending, or as a folder of them without images and folders."""
    if not path.is_dir():
        return path.suffix == ".tar"
    try:
        with os.scandir(path) as found:
            entries = [each for each in found if not each.name.startswith(".")]
        if not any(is_shard(each.name) for each in entries) or any(each.is_dir() for each in entries):
            return False
    except OSError:  # which reading the folder reports
        return False
    from diffkit.data.folder import SUFFIXES

    return not any(each.name.lower().endswith(tuple(SUFFIXES)) for each in entries)


def _matching(text: str) -> list[str]:
    """Return the files of a pattern without braces; a name without signs stands for itself."""
    return sorted(glob.glob(text)) if glob.has_magic(text) else [text]  # noqa: PTH207 - an absolute pattern, too


def _expand_braces(text: str) -> list[str]:
    """Return every text that ``{a,b}`` and ``{000..009}`` in a text stand for, in order."""
    braces = _BRACES.search(text)
    if braces is None:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    choices = braces[1].split(",")
    if numbers is not None:
        first, last = numbers.groups()
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [
        text[: braces.start()] + choice + rest for choice in choices for rest in _expand_braces(text[braces.end() :])
    ]
