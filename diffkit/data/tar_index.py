"""Which files tar archives hold, and where: each is read by its offset, and nothing is unpacked. Imports no torch."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffkit.data.names import printable
from diffkit.data.parallel import logs_for_job
from diffkit.errors import DataError
from diffkit.runtime.files import write_atomically
from diffkit.runtime.progress import progress as show_progress

FORMAT = 1
_LARGEST = 1 << 30
"""Largest size in bytes of a file in an archive; a larger one is not an image, and might fill the memory."""
_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
"""The first two bytes of a compressed file, and the program that unpacks it."""


class Member(NamedTuple):
    """A file in a tar archive.

    Attributes:
        name: Its path in the archive, with "/" between folders.
        offset: Where its content begins, in bytes.
        size: Its size in bytes.
    """

    name: str
    offset: int
    size: int


def index_shards(shards: Sequence[Path], index: Path | None, progress: bool = False) -> list[tuple[Member, ...]]:
    """Return the files in each of some tar archives, in their order there.

    Args:
        shards: The archives.
        index: A .json file that stores what was found for later runs: written if needed, and again for archives
            whose size or time has changed. None reads the headers in the archives each time.
        progress: Show a progress bar.
    Raises:
        DataError: An archive is damaged, or holds links; or the file is not such an index, or cannot be written.
    """
    stored = {} if index is None else _read_index(index)
    names = [os.path.abspath(shard) for shard in shards]  # noqa: PTH100 - a link is a name of its own
    stamps = [[shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    found = {name: stored.get(name, {"stamp": None}) for name in names}
    changed = [i for i, name in enumerate(names) if found[name]["stamp"] != stamps[i]]
    with show_progress(len(changed), "indexing shards", progress and bool(changed)) as advance:
        for i in changed:
            found[names[i]] = {"stamp": stamps[i], "files": _list_files(shards[i])}
            advance(1)
    if index is not None and changed and logs_for_job():
        try:
            write_atomically(index, json.dumps({"format": FORMAT, "shards": {**stored, **found}}).encode())
        except OSError as error:
            raise DataError(f"index {str(index)!r} cannot be written: {error.strerror or error}") from error
    return [tuple(Member(*each) for each in found[name]["files"]) for name in names]


def read_member(shard: Path, offset: int, size: int, name: str) -> bytes:
    """Return the content of a file in a tar archive; ``name`` is its name in errors."""
    if size > _LARGEST:
        raise DataError(f"{name}: more than {_LARGEST} bytes, which no image has")
    try:
        with shard.open("rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    if len(content) < size:
        raise DataError(f"{name}: the tar file ends within it, so it was changed since it was indexed")
    return content


def _list_files(shard: Path) -> list[Member]:
    """Return the files in a tar archive, by reading the header of each."""
    files, end = [], 0
    try:
        with shard.open("rb") as file:
            program = _COMPRESSED.get(file.read(2))
        if program is not None:
            raise DataError(f"{str(shard)!r} is compressed, so that no file in it can be read alone; call {program}")
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if not info.isdir():
                    files.append(_as_member(info, shard))
        rest = _first_non_zero(shard, end)
    except DataError:
        raise
    except Exception as error:  # tarfile raises errors of many kinds at damaged headers
        raise DataError(f"{str(shard)!r} is not a tar file, or damaged: {error or type(error).__name__}") from error
    if rest is not None:
        raise DataError(f"{str(shard)!r} is damaged, or more than one tar file: byte {rest} is neither header nor end")
    names = {each.name for each in files}
    for each in files if len(names) < len(files) else ():
        if each.name not in names:
            raise DataError(f"{_text(shard, each.name)} is there twice; give each file a name of its own")
        names.remove(each.name)
    return files


def _as_member(info: tarfile.TarInfo, shard: Path) -> Member:
    if info.issym() or info.islnk():
        raise DataError(f"{_text(shard, info.name)} is a link, which is not followed; pack the file itself: tar -h")
    if not info.isreg() or info.issparse():
        raise DataError(f"{_text(shard, info.name)} is not an ordinary file; pack only such")
    if info.size < 0:
        raise DataError(f"{_text(shard, info.name)} has a negative size, so the tar file is damaged")
    return Member(posixpath.normpath(info.name), info.offset_data, info.size)


def _first_non_zero(shard: Path, start: int) -> int | None:
    """Return where the first byte is that is not zero after the last file of an archive; its end is zeros.

    Raises:
        EOFError: The archive has no end.
    """
    with shard.open("rb") as file:
        file.seek(start)
        at = start
        while piece := file.read(_PIECE):
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            at += zeros
            if zeros < len(piece):
                return at
    if at == start:
        raise EOFError("it has no end, so it was cut off")
    return None


def _text(shard: Path, member: str) -> str:
    return f"{printable(shard)}: {printable(member)}"


def _read_index(path: Path) -> dict[str, Any]:
    """Return what an index file stores, by archive; nothing if there is no such file."""
    try:
        found = json.loads(path.read_bytes())
        if found["format"] == FORMAT and all(_is_record(each) for each in found["shards"].values()):
            shards: dict[str, Any] = found["shards"]
            return shards
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DataError(f"{str(path)!r} exists, but is not an index of diffkit; remove it, or name another file")


def _is_record(record: Any) -> bool:
    return all(
        isinstance(name, str) and type(offset) is int and type(size) is int and offset >= 0 and size >= 0
        for name, offset, size in record["files"]
    ) and isinstance(record["stamp"], list)
