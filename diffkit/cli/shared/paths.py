"""Checks of where results are to go, before any work is done.

A file or folder that the user names is never replaced without --overwrite. Only files that a command names itself, in
the folder of a run, are replaced; and `diffkit train`, `sample` and `demo` resume their own work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.composition import SOURCES
from diffkit.errors import OptionError


def check_file(flag: str, path: Path | None, suffixes: tuple[str, ...] = (), *, overwrite: bool) -> None:
    """Raise `OptionError` unless a file can be written there; None means no file.

    Args:
        flag: The option that named it.
        path: The file.
        suffixes: How its name must end, if that matters.
        overwrite: An existing one may be replaced.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise OptionError(f"{flag} must end in {' or '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise OptionError(f"{flag} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise OptionError(f"{flag} {path} is in a folder that is not there")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"{flag} {path} is in a folder that cannot be written to")
    if path.exists() and not overwrite:
        raise OptionError(f"{flag} {path} exists already; name another file", fix={"overwrite": True})


def may_replace(paths: Sequence[Path | None], overwrite: bool) -> bool:
    """Return whether existing files may be replaced: on request, or if the command was stopped while it wrote them."""
    found = [path for path in paths if path is not None]
    if overwrite or not any(path.exists() for path in found):
        return overwrite
    from diffkit.runtime.publishing import unfinished  # which needs torch

    return unfinished(found)


_WRITTEN = ("out", "to", "plot", "save_reference", "published")


def check_not_its_own_input(options: Sequence[Option], parsed: ParsedOptions) -> None:
    """Raise `OptionError` if --overwrite would let a command overwrite its own input."""
    if not parsed.values.get("overwrite"):
        return
    data = {kind: _read_as_data(name) for kind, (name, _) in parsed.parts.items() if kind in SOURCES}
    paths = {option: {**parsed.values, **data}.get(option.key) for option in options}
    for option, out in paths.items():
        for other, path in paths.items():
            if option.key in _WRITTEN and other.key not in _WRITTEN and _same(out, path):
                raise OptionError(f"{option.flag} {out} is what {other.flag} reads; name another one")


def _read_as_data(source: str) -> Path | None:
    from diffkit.data.loading import registered_name

    return None if registered_name(source) else Path(source)


def _same(one: Any, other: Any) -> bool:
    try:
        return isinstance(one, Path) and isinstance(other, Path) and one.samefile(other)
    except (OSError, ValueError):
        return False  # one of them is not there


def check_folder(flag: str, path: Path) -> None:
    """Raise `OptionError` unless a folder is there, or can be made there, and can be written to."""
    if path.exists() and not path.is_dir():
        raise OptionError(f"{flag} {path} is a file; name a folder")
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OptionError(f"{flag} {path} cannot be made: {nearest} cannot be written to")


def check_new_folder(flag: str, path: Path, *, overwrite: bool) -> None:
    """Raise `OptionError` as `check_folder`, or if the folder holds something and that may not be replaced."""
    check_folder(flag, path)
    from diffkit.runtime.temporaries import is_temporary

    if path.is_dir() and not all(map(is_temporary, path.iterdir())) and not overwrite:
        raise OptionError(f"{flag} {path} is not empty; name another folder", fix={"overwrite": True})


def check_run_folder(flag: str, path: Path) -> None:
    """Raise `OptionError` as `check_folder`, or if the folder is not empty and holds no run to resume."""
    from diffkit.runtime.run_layout import is_run
    from diffkit.training.run_folder import foreign_files

    check_folder(flag, path)
    if not path.is_dir() or is_run(path):
        return
    if others := foreign_files(path):
        raise OptionError(f"{flag} {path} holds something, such as {others[0]}, but no run; name another folder")


def in_run_folder(folder: Path, name: str) -> Path | None:
    """Default path of a result about a run: in its folder; None if that is read-only."""
    return folder / name if folder.is_dir() and os.access(folder, os.W_OK) else None
