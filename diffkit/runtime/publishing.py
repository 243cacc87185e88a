"""Publish results that belong together: a folder that is written atomically, or the files of one command.

A command does not replace existing files. So that it can run again after it was killed between two of its files,
`together` writes a marker file next to the first of them until all are written, and `unfinished` looks for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffkit.runtime.files import replacing, sync_folder, write_atomically
from diffkit.runtime.temporaries import replacement, sweep


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are published in ``out`` if the block succeeds.

    If ``out`` is new or empty, this is atomic. Otherwise files of the same names are replaced, one after the other.
    """
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    at_once = not out.exists() or (not any(out.iterdir()) and _can_be_replaced(out))
    with replacement(out if at_once else out / "new", folder=True) as work:
        yield work
        if at_once:
            if out.exists():
                out.rmdir()
            work.rename(out)
        else:
            _move_files(work, out)
    sync_folder(out.parent if at_once else out)


def _can_be_replaced(folder: Path) -> bool:
    """Whether another folder can replace this one, which is impossible for a mount point."""
    parent = folder.parent
    return os.access(parent, os.W_OK) and not folder.is_mount() and folder.stat().st_dev == parent.stat().st_dev


def _move_files(work: Path, out: Path) -> None:
    for path in sorted(work.rglob("*")):
        target = out / path.relative_to(work)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.replace(target)


@contextmanager
def together(paths: Sequence[Path]) -> Iterator[None]:
    """Mark files and folders of a command as unfinished inside the block, by a marker file, until all are written."""
    if not paths:
        yield
        return
    note = _marker_path(paths)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, _marker_content(paths))
    try:
        yield
    finally:
        if all(path.exists() for path in paths) or not any(path.exists() for path in paths):
            note.unlink(missing_ok=True)


def unfinished(paths: Sequence[Path]) -> bool:
    """Return whether a command was stopped while it wrote exactly these files, so that they may be replaced."""
    try:
        return bool(paths) and _marker_path(paths).read_bytes() == _marker_content(paths)
    except OSError:
        return False


def _marker_path(paths: Sequence[Path]) -> Path:
    return paths[0].with_name(f".{paths[0].name}.unfinished")


def _marker_content(paths: Sequence[Path]) -> bytes:
    """Return the content of the marker file: paths relative to the first, so that their folder may be moved."""
    names = [os.path.relpath(path.absolute(), paths[0].absolute().parent) for path in paths]
    return json.dumps(names).encode()


def save_npz(path: Path, **arrays: Any) -> None:
    """Write arrays into an .npz file, atomically."""
    with replacing(path) as temporary, temporary.open("r+b") as file:
        np.savez(file, **arrays)
