"""Weights in safetensors files: written and read in one pass, together with the SHA-256 of their bytes.

The bytes are those of the safetensors library, which takes a second copy of a file in memory and cannot hash on the
way. Files that it alone understands, such as those of rare dtypes, are read and written by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import check_fields, check_ordinary, parse_json, reason

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
_LONGEST_HEADER = 100_000_000
"""Most bytes of a header, as in the library."""
_CHUNK = 1 << 18
"""Bytes that are read before they are hashed: 256 KiB, which are still in a processor's cache then."""
_SMALL = 1 << 20
"""Bytes up to which a thread takes longer to start than to hash."""


@torch.no_grad()
def write_weights(
    file: BinaryIO, state: Mapping[str, Tensor], record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write tensors into an empty file, and return the file's record: its size and SHA-256.

    Args:
        file: The file, open for writing; it is not flushed.
        state: The tensors, by name.
        record: The record, if the same tensors were written before; they are not hashed again then.
    Raises:
        CheckpointError: safetensors cannot hold one of them.
    """
    if record is not None:
        for piece in _pieces(state):
            file.write(piece)
        return {"size": record["size"], "sha256": record["sha256"]}
    found, size = hashlib.sha256(), 0
    for piece in _pieces(state):
        file.write(piece)
        found.update(piece)
        size += len(piece)
    return {"size": size, "sha256": found.hexdigest()}


@torch.no_grad()
def weights_record(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the record of the file that `write_weights` writes."""
    found, size = hashlib.sha256(), 0
    for piece in _pieces(state):
        found.update(piece)
        size += len(piece)
    return {"size": size, "sha256": found.hexdigest()}


def read_weights(path: Path, record: Mapping[str, Any] | None = None, *, ahead: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file after comparing it with its recorded size and SHA-256.

    Args:
        path: The file.
        record: Its "size" and "sha256", and under "before" those of the file that it replaces.
        ahead: Read the next bytes of a large file while a thread hashes those before.
    Raises:
        CheckpointError: The file is missing, truncated, altered or not a safetensors file.
    """
    if record is not None:
        check_fields(record, f"the record of {path}", CheckpointError, size=int, sha256=str, before=(dict, type(None)))
    try:
        check_ordinary(path)
        with path.open("rb", buffering=0) as file:
            header, layout = _read_header(file)
            if layout is not None:
                tensors, found = _read_tensors(file, header, layout, None if record is None else _Hasher(ahead))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if layout is None:
        return _read_by_library(path, record)
    _check_recorded(path, found, record)
    return tensors


def read_each(files: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[dict[str, Tensor]]:
    """Return what `read_weights` returns for each of several files; large ones are read at the same time."""
    if len(files) < 2 or sum(record["size"] for _, record in files) < 2 * _SMALL:
        return [read_weights(path, record) for path, record in files]
    processors = os.cpu_count() or 1
    with ThreadPoolExecutor(min(len(files), processors), "read") as threads:
        return list(threads.map(lambda file: read_weights(*file, ahead=processors > len(files)), files))


def digest(content: bytes) -> dict[str, Any]:
    """Return the record of a file with this content: its size and SHA-256."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    yield from _data([state[name] for name in ordered if state[name].nbytes])


def _data(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """Yield the memory of tensors; small ones of one dtype are put together, as each piece has its cost."""
    small: list[Tensor] = []
    for tensor in tensors:
        large = tensor.nbytes > _CHUNK // 8
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


def _read_tensors(
    file: Any, header: bytes, layout: Sequence[_Place], hasher: _Hasher | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors that follow a header, each in memory of its own, and the record of the file."""
    tensors, size = {}, len(header) + sum(place.size for place in layout)
    update = hasher.update if hasher else len
    with hasher or nullcontext():
        update(header)
        for place in layout:
            own = torch.empty(place.size, dtype=torch.uint8)
            if place.size:
                _read_into(file, own.numpy().data, update)
            tensors[place.name] = own.view(place.dtype).view(place.shape)
        return tensors, {"size": size, "sha256": hasher.hexdigest()} if hasher else {}


def _read_into(file: Any, memory: memoryview, update: Callable[[memoryview], object]) -> None:
    """Fill memory with the next bytes of a file, and call ``update`` with each piece of it."""
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done : done + _CHUNK])
        if not count:
            raise ValueError("it became shorter while it was read")
        update(memory[done : done + count])
        done += count


class _Hasher:
    """The SHA-256 of pieces of memory in their order; with ``ahead``, in a thread while the caller reads the next.

    Args:
        ahead: Use a thread, as soon as there is enough to hash.
    """

    def __init__(self, ahead: bool):
        self._hash, self._ahead = hashlib.sha256(), ahead
        self._thread: ThreadPoolExecutor | None = None
        self._pieces: list[bytes | memoryview] = []
        self._size = 0

    def update(self, piece: bytes | memoryview) -> None:
        """Add a piece, whose memory must not change."""
        if not self._ahead:
            self._hash.update(piece)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _SMALL:
            self._thread = self._thread or ThreadPoolExecutor(1, "hash")
            self._thread.submit(self._add, self._pieces)
            self._pieces, self._size = [], 0

    def hexdigest(self) -> str:
        """Return the digest of all pieces."""
        if self._thread is not None:
            self._thread.shutdown()
        self._add(self._pieces)
        return self._hash.hexdigest()

    def _add(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            self._hash.update(piece)

    def __enter__(self) -> _Hasher:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


def _read_by_library(path: Path, record: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Read a file with the library: one of rare dtypes, or a damaged one."""
    from safetensors.torch import load as from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    _check_recorded(path, digest(content), record)
    try:
        return from_bytes(content)
    except Exception as error:  # damaged bytes raise several kinds of error
        raise CheckpointError(f"{path} is not a whole safetensors file: {reason(error)}") from error


def _check_recorded(path: Path, found: Mapping[str, Any], record: Mapping[str, Any] | None) -> None:
    """Raise unless a file's size and digest are those recorded, or those of the file that it replaces."""
    if record is None:
        return
    before = record.get("before")
    if before is not None and all(found[key] == before.get(key) for key in found):
        return
    if found["size"] != record["size"]:
        raise CheckpointError(f"{path} is damaged: it has {found['size']} bytes, {record['size']} were written")
    if found["sha256"] != record["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")
