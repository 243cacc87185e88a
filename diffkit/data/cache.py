"""A cache of decoded pixels in a memory-mapped file, which is read about ten times as fast as images are decoded.

PATH.npy    the pixels of every image, (N, C, H, W) uint8 or uint16
PATH.json   the record: the key, the unreadable images, and the SHA-256 of the pixels

The key is a hash of the images' stamps and of the form they are converted to; a cache with another key is built again.
The record is written before the new pixels replace the old ones. If building is interrupted, the record does not match
the pixels, and they are not used.
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
"""Bytes from the start of a .npy file that contain its header; the rest is zeros until pixels are written."""


class MemoryMappedArray:
    """A memory-mapped .npy file as an array; each process maps the file for itself.

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

    def __reduce__(self) -> tuple[type[MemoryMappedArray], tuple[Path]]:
        """Send the path, not the pixels, to another process."""
        return MemoryMappedArray, (self.path,)


def cached_pixels(
    path: Path, pictures: Pictures, *, processes: int = 0, skip: bool = False, progress: bool = False
) -> tuple[MemoryMappedArray | None, dict[int, str]]:
    """Return the cached pixels of images, and why some are unreadable; the cache is built if it does not exist.

    If several processes call this at once, one builds the cache and the others wait for it.

    Args:
        path: The cache, a .npy file.
        pictures: The images to cache.
        processes: Number of processes that decode images; 0 decodes in this process.
        skip: Write a cache even if some images are unreadable; otherwise none is written, and pixels are None.
        progress: Show the progress of building and checking.
    Raises:
        DataError: The file is not a cache, or cannot be written.
    """
    key = _cache_key(pictures)
    bad = _unreadable_in_cache(path, key, progress)  # without the lock, so that many processes can check at once
    if bad is None:
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise DataError(f"cache {str(path)!r} is in a folder that is missing or cannot be written")
        with _hold_lock(Path(f"{path}.lock")):
            bad = _unreadable_in_cache(path, key, progress, locked=True)
            if bad is None:
                bad = _build_cache(path, key, pictures, processes, skip, progress)
    return (None if bad and not skip else MemoryMappedArray(path)), bad


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a cache; without file locks, log a warning and go on, as a cache is replaced atomically."""
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


def _cache_key(pictures: Pictures) -> str:
    facts = {"format": FORMAT, "form": attrs.asdict(pictures.form), "pictures": pictures.stamps()}
    return hashlib.sha256(json.dumps(facts).encode(errors="surrogatepass")).hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _unreadable_in_cache(path: Path, key: str, progress: bool, locked: bool = False) -> dict[int, str] | None:
    """Return the unreadable images of a cache if it can be used, or None if it has to be built.

    Without the lock, a cache may seem damaged because another process is replacing it.
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
        record = json_object(_record_path(path), most=2**30)
        check_fields(record, "the record", DataError, format=int, key=str, size=int, sha256=str, bad=dict)
        if all(number.isdecimal() and isinstance(text, str) for number, text in record["bad"].items()):
            return record
    except FileNotFoundError:
        if not path.exists():
            return None
    except (OSError, ValueError):  # DataError is a ValueError
        pass
    raise DataError(
        f"{str(path)!r} or {str(_record_path(path))!r} exists, but is not a cache of diffkit; remove both, or name "
        "another file"
    )


def _build_cache(
    path: Path, key: str, pictures: Pictures, processes: int, skip: bool, progress: bool
) -> dict[int, str]:
    """Decode every image into a temporary file, and rename it to replace the cache."""
    bad: dict[int, str] = {}
    form = pictures.form
    shape = (len(pictures), *form.shape)
    try:
        with replacing(path) as temporary:
            pixels = open_memmap(temporary, mode="w+", dtype=form.dtype, shape=shape)
            reserve_disk_space(temporary)
            bad = decode_all(pictures, pixels, processes=processes, doing="building the cache", progress=progress)
            if bad and not skip:
                raise _DiscardCacheError
            pixels.flush()
            del pixels
            _sync(temporary)
            record = {"format": FORMAT, "key": key, "size": temporary.stat().st_size, "sha256": _sha256(temporary)}
            write_atomically(_record_path(path), json.dumps({**record, "bad": bad}).encode())
    except _DiscardCacheError:
        pass
    except OSError as error:
        need = int(np.prod(shape)) * form.dtype.itemsize
        raise DataError(
            f"cache {str(path)!r} cannot be written: {error.strerror or error}; it takes {need} bytes"
        ) from error
    return bad


def reserve_disk_space(path: Path) -> None:
    """Reserve the disk space of a cache before it is written by memory map, when a full disk would kill the process.

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
                raise  # the disk is full; the other numbers mean that the file system cannot reserve space
        header = file.read(_HEADER)
        file.seek(0)
        for start in range(0, size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - start)))
        file.seek(0)
        file.write(header)


class _DiscardCacheError(Exception):
    """Raised to discard the cache that is being built."""


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
