"""Weights in safetensors files: written and read in one pass, together with the SHA-256 of their bytes.

The bytes are those of the safetensors library, which takes a second copy of a file in memory and cannot hash on the
way. Files that it alone understands, such as those of rare dtypes, are read and written by it.

The record of a file has its size and its SHA-256. A file of more than 4 MiB is hashed in chunks, so that threads can
hash some while the next are read: "sha256" is that of the digests of all chunks, and "chunk" has their size. A large
file whose record has no "chunk" was written by an earlier version, which hashed it as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import check_fields, check_ordinary, parse_json, reason, shown

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
"""Names of dtypes in the format; tensors are stored in the reverse of this order, and by name."""
_NAMES = {dtype: (rank, name) for rank, (name, dtype) in enumerate(_DTYPES.items())}
_header_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_LONGEST_HEADER = 100_000_000
"""Most bytes of a header, as in the library."""
_CHUNK = 1 << 22
"""Bytes of a chunk: large for a thread to start with, small beside the file that waits for the last of them."""
_THREADS = 4
"""Threads that hash: together faster than the one that reads."""
_SMALL = 1 << 20
"""Bytes up to which a thread takes longer to start than to hash."""
_PIECE = 1 << 15
"""Bytes up to which tensors are put together before they are written."""


@torch.no_grad()
def write_weights(file: BinaryIO, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write tensors into an empty file, and return the record of the file.

    Args:
        file: The file, open for writing; it is not flushed.
        state: The tensors, by name.
    Raises:
        CheckpointError: safetensors cannot hold one of them.
    """
    found = _FileHash()
    for piece in _pieces(state):
        file.write(piece)
        found.update(piece)
    return found.record()


@torch.no_grad()
def weights_record(state: Mapping[str, Tensor], *, chunked: bool = True) -> dict[str, Any]:
    """Return the record of the file that `write_weights` writes; not ``chunked``, as earlier versions recorded it."""
    found = _FileHash(chunked=chunked)
    for piece in _pieces(state):
        found.update(piece)
    return found.record()


def digest(content: bytes) -> dict[str, Any]:
    """Return the record of a file with this content."""
    found = _FileHash()
    found.update(content)
    return found.record()


def read_weights(path: Path, record: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file after comparing it with its record.

    Args:
        path: The file.
        record: Its record, and under "before" that of the file that it replaces.
    Raises:
        CheckpointError: The file is missing, truncated, altered or not a safetensors file.
    """
    return read_each([(path, record)])[0]


def read_each(files: Sequence[tuple[Path, Mapping[str, Any] | None]]) -> list[dict[str, Tensor]]:
    """Return what `read_weights` returns for each of several files, once all of them agree with their records."""
    with ThreadPoolExecutor(_THREADS, "hash") as threads:
        found = [_read(path, record, threads) for path, record in files]
        for (path, record), (_, hashed) in zip(files, found, strict=True):
            _check_recorded(path, hashed, record)
    return [tensors for tensors, _ in found]


def to_safetensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors requires: contiguous, on the CPU, without shared memory; copied where needed."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    _check_plain(state)
    for name, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != own.nbytes:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found


def not_plain(state: Mapping[str, Any]) -> str | None:
    """Return why safetensors cannot hold an entry of a network's state; None if it can hold all."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            return f"{name!r} in its state is a {type(value).__name__} and no tensor, as quantized layers have it"
        if value.is_quantized:
            return f"{name!r} in its state is a quantized tensor"
    return None


def _check_plain(state: Mapping[str, Any]) -> None:
    if odd := not_plain(state):
        raise CheckpointError(
            f"the network cannot be saved: {odd}; save it as it was before, or its state by torch.save"
        )


# ---- writing ---------------------------------------------------------------------------------------------------------


def _pieces(state: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file of some tensors: the header, then each tensor's memory."""
    _check_plain(state)
    if any(tensor.dtype not in _NAMES or tensor.is_sparse for tensor in state.values()):
        from safetensors.torch import save as to_bytes

        yield to_bytes(to_safetensors(state))
        return
    ordered = sorted(state, key=lambda name: (-_NAMES[state[name].dtype][0], name.encode()))
    entries, end = {}, 0
    for name in ordered:
        tensor = state[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype][1],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = _header_json(entries).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    yield from _data([state[name] for name in ordered if state[name].nbytes])


def _data(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """Yield the memory of tensors; small ones of one dtype are put together, as each piece has its cost."""
    small: list[Tensor] = []
    for tensor in tensors:
        large = tensor.nbytes > _PIECE
        if small and (large or len(small) == 64 or tensor.dtype != small[0].dtype):
            yield _memory(torch.cat(small))
            small = []
        if large:
            yield _memory(tensor)
        else:
            small.append(tensor.reshape(-1))
    if small:
        yield _memory(torch.cat(small))


def _memory(tensor: Tensor) -> memoryview:
    """Return the values of a tensor in memory of the host, as bytes."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a file has a tensor: after those before it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    size: int


def _read_header(file: Any) -> tuple[bytes, list[_Place] | None]:
    """Return the first bytes of an open file, and the tensors that follow; None if the library has to judge them."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, _LONGEST_HEADER):
        return first, None
    header = file.read(length)
    try:
        return first + header, _layout(parse_json(header), size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError):
        return first, None


def _layout(entries: Any, size: int) -> list[_Place] | None:
    """Return the tensors of a header in the order of their bytes, if these fill the rest of the file without gaps."""
    found, end = [], 0
    tensors = [(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    for name, entry in sorted(tensors, key=lambda each: each[1]["data_offsets"]):
        dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if start != end or not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            return None
        if stop - start != math.prod(shape) * dtype.itemsize:
            return None
        found.append(_Place(name, dtype, shape, stop - start))
        end = stop
    return found if end == size else None


def _read(
    path: Path, record: Mapping[str, Any] | None, threads: Executor
) -> tuple[dict[str, Tensor], _FileHash | None]:
    """Return the tensors of a file, not yet verified, and its hash if there is a record to compare it with."""
    found = None if record is None else _FileHash(chunked=_is_chunked(path, record), threads=threads)
    try:
        check_ordinary(path)
        with path.open("rb", buffering=0) as file:
            header, layout = _read_header(file)
            if layout is not None:
                return _read_tensors(file, header, layout, found), found
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if found:
        found.update(content)
        _check_recorded(path, found, record)
    return _read_by_library(path, content), found


def _read_tensors(file: Any, header: bytes, layout: Sequence[_Place], found: _FileHash | None) -> dict[str, Tensor]:
    """Return the tensors that follow a header, each in memory of its own."""
    update = found.update if found else len
    tensors = {}
    update(header)
    for place in layout:
        own = torch.empty(place.size, dtype=torch.uint8)
        memory, done = own.numpy().data, 0
        while done < place.size:
            count = file.readinto(memory[done : done + _CHUNK])
            if not count:
                raise ValueError("it became shorter while it was read")
            update(memory[done : done + count])
            done += count
        tensors[place.name] = own.view(place.dtype).view(place.shape)
    if found:
        found.end_chunk()
    return tensors


def _read_by_library(path: Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file that the library has to judge: one of rare dtypes, or a damaged one."""
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(content)
    except Exception as error:  # damaged bytes raise several kinds of error
        raise CheckpointError(f"{path} is not a whole safetensors file: {reason(error)}") from error


# ---- records ---------------------------------------------------------------------------------------------------------


class _FileHash:
    """The record of a file, from its bytes in their order.

    Args:
        chunked: Hash a large file in chunks.
        threads: Where chunks are hashed; in the caller's thread by default.
    """

    def __init__(self, *, chunked: bool = True, threads: Executor | None = None):
        self._chunk = _CHUNK if chunked else sys.maxsize
        self._threads = threads
        self._digests: list[bytes | Future[bytes]] = []
        self._pieces: list[memoryview] = []
        self._size, self._start = 0, 0

    def update(self, piece: bytes | memoryview) -> None:
        """Add a piece, whose memory must not change."""
        rest = memoryview(piece)
        while rest:
            part = rest[: self._start + self._chunk - self._size]
            self._pieces.append(part)
            self._size += len(part)
            rest = rest[len(part) :]
            if self._size - self._start == self._chunk:
                self.end_chunk()

    def end_chunk(self) -> None:
        """Hash the pieces of the chunk that ends here, if there are any."""
        if self._threads and self._size - self._start > _SMALL:
            self._digests.append(self._threads.submit(_sha256, self._pieces))
        elif self._pieces:
            self._digests.append(_sha256(self._pieces))
        self._pieces, self._start = [], self._size

    def record(self) -> dict[str, Any]:
        """Return the record of a file with all pieces so far, once they are hashed."""
        self.end_chunk()
        found = [each if isinstance(each, bytes) else each.result() for each in self._digests]
        if len(found) > 1:
            return {"size": self._size, "sha256": _sha256(found).hex(), "chunk": self._chunk}
        return {"size": self._size, "sha256": (found[0] if found else _sha256([])).hex()}


def _sha256(pieces: Iterable[bytes | memoryview]) -> bytes:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.digest()


def _is_chunked(path: Path, record: Mapping[str, Any]) -> bool:
    """Return whether a file, or the one that it replaces, was hashed in chunks; raise if its record is damaged."""
    none, what = type(None), f"the record of {path}"
    check_fields(record, what, CheckpointError, size=int, sha256=str, chunk=(int, none), before=(dict, none))
    if record.get("chunk", _CHUNK) != _CHUNK:
        raise CheckpointError(f"{what} has 'chunk' {shown(record['chunk'])}; it can only be {_CHUNK}")
    return "chunk" in record or "chunk" in (record.get("before") or {})


def _check_recorded(path: Path, hashed: _FileHash | None, record: Mapping[str, Any] | None) -> None:
    """Raise unless a file's size and digest are those recorded, or those of the file that it replaces."""
    if hashed is None or record is None:
        return
    found, before = hashed.record(), record.get("before")
    if before is not None and all(found[key] == before.get(key) for key in found):
        return
    if found["size"] != record["size"]:
        raise CheckpointError(f"{path} is damaged: it has {found['size']} bytes, {record['size']} were written")
    if found["sha256"] != record["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")
