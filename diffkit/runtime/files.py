"""Files that are written atomically, and weights that are compared, hashed and copied into a network."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import word
from diffkit.runtime.temporaries import replacement


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
    missing, foreign = (
        sorted(own.keys() - weights.keys() - _filled(network, weights)),
        sorted(weights.keys() - own.keys()),
    )
    shapes = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or foreign or shapes:
        faults = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        faults += [f"{len(foreign)} unknown (first: {word(foreign[0])})"] if foreign else []
        faults += [
            f"{len(shapes)} of another shape (first: {k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)})"
            for k in sorted(shapes)[:1]
        ]
        raise CheckpointError(f"these weights do not fit the network: {', '.join(faults)}")


def _filled(network: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """The weights of modules that fill in their own where a network is loaded that has none of them."""
    found: set[str] = set()
    for prefix, module in network.named_modules():
        if getattr(module, "fills_in_weights", False):
            names = {f"{prefix}.{name}" for name in module.state_dict()}
            found |= set() if names & weights.keys() else names
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, even if the machine crashes; a link of that name is replaced."""
    with replacing(path) as temporary, temporary.open("r+b") as file:
        file.write(content)
        flush(file)


def write_through(path: Path, content: bytes) -> None:
    """Write a new file through to the disk: on return its content survives a crash, but its name may not yet.

    An existing file or link of that name is removed first, so that nothing is written through a link.
    """
    path.unlink(missing_ok=True)
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file, open for writing; it is flushed to the disk at the end of the block."""
    with path.open("xb") as file:
        yield file
        flush(file)


def flush(file: BinaryIO) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Flush to the disk what any process has written into a file; without such a file, do nothing."""
    with contextlib.suppress(FileNotFoundError), path.open("ab", buffering=0) as file:
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
