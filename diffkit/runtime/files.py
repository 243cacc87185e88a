"""Files: written atomically; weights in them are compared with a recorded digest before use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import check_fields, check_ordinary, reason, word
from diffkit.runtime.temporaries import replacement


def read_weights(path: Path, record: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file after comparing it with its recorded size and SHA-256.

    Args:
        path: The file.
        record: Its "size" and "sha256", and under "before" those of the file that it replaces.
    Raises:
        CheckpointError: The file is missing, truncated, altered or not a safetensors file.
    """
    from safetensors.torch import load as from_bytes

    try:
        check_ordinary(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if record is not None:
        check_fields(record, f"the record of {path}", CheckpointError, size=int, sha256=str, before=(dict, type(None)))
        _check_recorded(path, content, record)
    try:
        return from_bytes(content)
    except Exception as error:  # damaged bytes raise several kinds of error
        raise CheckpointError(f"{path} is not a whole safetensors file: {reason(error)}") from error


def digest(content: bytes) -> dict[str, Any]:
    """Return the record of a file with this content: its size and SHA-256."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def weights_digest(state: Mapping[str, Tensor], before: bytes = b"", *, shapes: bool = False) -> str:
    """Return the SHA-256 of weights: names and values of tensors, in order of name.

    Args:
        state: The tensors.
        before: Bytes that are hashed before the tensors.
        shapes: Hash shapes and dtypes too; True for cached evaluations, False for cached samples.
    """
    found = hashlib.sha256(before)
    for name, tensor in sorted(state.items()):
        found.update((f"{name} {tuple(tensor.shape)} {tensor.dtype}\n" if shapes else name).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_recorded(path: Path, content: bytes, record: Mapping[str, Any]) -> None:
    found, before = digest(content), record.get("before")
    if before is not None and all(found[key] == before.get(key) for key in found):
        return
    if found["size"] != record["size"]:
        raise CheckpointError(f"{path} is damaged: it has {found['size']} bytes, {record['size']} were written")
    if found["sha256"] != record["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")


def unwrap_module(network: nn.Module) -> nn.Module:
    """Return a network without the wrappers of torch.compile and data parallelism, which rename its weights."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := dict(network._modules.items()).get("_orig_mod"), nn.Module):
            network = inner
        else:
            return network


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network; raise `CheckpointError`, naming the first differences, if they do not fit."""
    network = unwrap_module(network)
    check_fit(network, weights)
    network.load_state_dict(dict(weights))


def check_fit(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError`, naming the first differences, unless weights have a network's names and shapes."""
    own = network.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or foreign or shapes:
        faults = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        faults += [f"{len(foreign)} unknown (first: {word(foreign[0])})"] if foreign else []
        faults += [
            f"{len(shapes)} of another shape (first: {k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)})"
            for k in sorted(shapes)[:1]
        ]
        raise CheckpointError(f"these weights do not fit the network: {', '.join(faults)}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, even if the machine crashes; a link of that name is replaced."""
    with replacing(path) as temporary, temporary.open("r+b") as file:
        _write(file, content)


def write_through(path: Path, content: bytes) -> None:
    """Write a new file through to the disk: on return its content survives a crash, but its name may not yet.

    An existing file or link of that name is removed first, so that nothing is written through a link.
    """
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        _write(file, content)


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file that replaces ``path`` if the block succeeds, and is removed if not.

    Temporary files of that name from killed processes are removed first.
    """
    with replacement(path) as temporary:
        yield temporary
        temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, if the operating system supports it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_safetensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors requires: contiguous, on the CPU, without shared memory; copied where needed."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    if odd := not_plain(state):
        raise CheckpointError(
            f"the network cannot be saved: {odd}; save it as it was before, or its state by torch.save"
        )
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
