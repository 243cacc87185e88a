"""Results that belong together: a folder that is written atomically, and files of one command.

A command does not replace existing files, so after being killed between two of its files it could never run again.
Therefore `together` stores a marker file next to the first of them until all are written, and `unfinished` finds it.
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
    """Yield a new folder; its files go to ``out`` if the block succeeds, all at once if that is new or empty.

    Where ``out`` holds something, files of the same names are replaced, one after the other.
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
    """Whether another folder can take the place of this one, which a mounted one does not allow."""
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
    """Note which files and folders are being written, until all of them are."""
    if not paths:
        yield
        return
    note = _note(paths)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, _text(paths))
    try:
        yield
    finally:
        if all(path.exists() for path in paths) or not any(path.exists() for path in paths):
            note.unlink(missing_ok=True)


def unfinished(paths: Sequence[Path]) -> bool:
    """Return whether a command that was writing just these files was stopped, so that they may be replaced."""
    try:
        return bool(paths) and _note(paths).read_bytes() == _text(paths)
    except OSError:
        return False


def _note(paths: Sequence[Path]) -> Path:
    return paths[0].with_name(f".{paths[0].name}.unfinished")


def _text(paths: Sequence[Path]) -> bytes:
    """Content of the marker file: the paths relative to the first of them, so that their folder may be moved."""
    names = [os.path.relpath(path.absolute(), paths[0].absolute().parent) for path in paths]
    return json.dumps(names).encode()


def save_npz(path: Path, **arrays: Any) -> None:
    """Write arrays into an .npz file, atomically."""
    with replacing(path) as temporary, temporary.open("r+b") as file:
        np.savez(file, **arrays)
