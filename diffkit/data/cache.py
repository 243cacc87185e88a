"""Pixels that were decoded once, in a file that is mapped into memory: read some ten times as fast as they are decoded.

PATH.npy    the pixels of every picture, (N, C, H, W) uint8 or uint16
PATH.json   what they were made from: the key, the unreadable pictures, and the SHA-256 of the pixels

The key is made of everything that decides the pixels; a cache of another key is built again. The record is written
before the pixels take their place, so if building is interrupted, a file that the record does not fit is never used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from diffkit.data.images import Pictures, decode_all
from diffkit.errors import DataError
from diffkit.runtime.files import replacing, write_atomically
from diffkit.runtime.locks import lock, open_lock_file
from diffkit.runtime.output import log
from diffkit.runtime.progress import progress as show_progress
from diffkit.runtime.strict_json import check_fields, json_object

FORMAT = 1
_BLOCK = 1 << 24
_HEADER = 1 << 12
"""Bytes that hold the whole header of a .npy file; what follows is zeros until it is written."""


class Mapped:
    """A .npy file as an array that is not read into memory; each process maps it for itself.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._array: NDArray[Any] | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of these rows."""
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(self._array[rows])

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path]]:
        """Send the path, not the pixels, to another process."""
        return Mapped, (self.path,)


def cached(
    path: Path, pictures: Pictures, *, processes: int = 0, skip: bool = False, progress: bool = False
) -> tuple[Mapped | None, dict[int, str]]:
    """Return the pixels of all pictures from a cache, which is built if it does not exist, and why some are unreadable.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        path: The cache, a .npy file.
        pictures: The images to cache.
        processes: Processes that decode; 0 decodes in this one.
        skip: Keep a cache although some pictures are unreadable; without, nothing is written then.
        progress: Show how far building and checking are.
    Raises:
        DataError: The file is not a cache, or cannot be written.
    """
    key = _key(pictures)
    bad = _valid(path, key, progress)  # without the lock, so that many processes can check at once
    if bad is None:
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise DataError(f"cache {str(path)!r} is in a folder that is missing or cannot be written")
        with _locked(Path(f"{path}.lock")):
            bad = _valid(path, key, progress, locked=True)
            if bad is None:
                bad = _build(path, key, pictures, processes, skip, progress)
    return (None if bad and not skip else Mapped(path)), bad


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, or say that the file system has none and go on: what is built takes its place at once and whole."""
    handle = open_lock_file(path, DataError)
    try:
        lock(handle, wait=True)
    except OSError as error:
        log(
            f"warning: the file system of {str(path.parent)!r} has no locks ({error}), so other processes may build "
            "the same cache at the same time"
        )
    try:
        yield
    finally:
        os.close(handle)


def _key(pictures: Pictures) -> str:
    facts = {"format": FORMAT, "form": attrs.asdict(pictures.form), "pictures": pictures.stamps()}
    return hashlib.sha256(json.dumps(facts).encode(errors="surrogatepass")).hexdigest()


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _valid(path: Path, key: str, progress: bool, locked: bool = False) -> dict[int, str] | None:
    """Return the unreadable pictures of a cache that can be used, or None if it has to be built.

    Without the lock, a cache may look damaged only because it is being replaced.
    """
    record = _read_record(path)
    if record is None or not path.exists() or record["key"] != key:
        return None
    if path.stat().st_size != record["size"] or _sha256(path, progress) != record["sha256"]:
        if locked:
            log(f"warning: the cache {str(path)!r} is damaged; it is built again")
        return None
    return {int(i): reason for i, reason in record["bad"].items()}


def _read_record(path: Path) -> Mapping[str, Any] | None:
    """Return the record next to a cache, or None if there is no cache; raise if the file is not a cache."""
    try:
        record = json_object(_record_of(path), most=2**30)
        check_fields(record, "the record", DataError, format=int, key=str, size=int, sha256=str, bad=dict)
        if all(number.isdecimal() and isinstance(text, str) for number, text in record["bad"].items()):
            return record
    except FileNotFoundError:
        if not path.exists():
            return None
    except (OSError, ValueError):  # of which `DataError` is one
        pass
    raise DataError(
        f"{str(path)!r} or {str(_record_of(path))!r} is there, but is not a cache of diffkit; remove both, or name "
        "another file"
    )


def _build(path: Path, key: str, pictures: Pictures, processes: int, skip: bool, progress: bool) -> dict[int, str]:
    """Decode every picture into a file next to the cache, then rename it to replace the cache."""
    bad: dict[int, str] = {}
    form = pictures.form
    shape = (len(pictures), *form.shape)
    try:
        with replacing(path) as temporary:
            pixels = open_memmap(temporary, mode="w+", dtype=form.dtype, shape=shape)
            _reserve(temporary)
            bad = decode_all(pictures, pixels, processes=processes, doing="building the cache", progress=progress)
            if bad and not skip:
                raise _UnwantedError
            pixels.flush()
            del pixels
            _sync(temporary)
            record = {"format": FORMAT, "key": key, "size": temporary.stat().st_size, "sha256": _sha256(temporary)}
            write_atomically(_record_of(path), json.dumps({**record, "bad": bad}).encode())
    except _UnwantedError:
        pass
    except OSError as error:
        need = int(np.prod(shape)) * form.dtype.itemsize
        raise DataError(
            f"cache {str(path)!r} cannot be written: {error.strerror or error}; it takes {need} bytes"
        ) from error
    return bad


def _reserve(path: Path) -> None:
    """Reserve the disk space of a file before it is written through a map, where a full disk would kill the process.

    Raises:
        OSError: There is not enough space.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # not a system that has it
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # a file system that cannot reserve says so; others are full
        header = file.read(_HEADER)
        file.seek(0)
        for start in range(0, size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - start)))
        file.seek(0)
        file.write(header)


class _UnwantedError(Exception):
    """Discard the cache that is being built."""


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path, progress: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, show_progress(path.stat().st_size, "checking the cache", progress) as advance:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
