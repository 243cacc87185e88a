"""Named tensors from a file that may come from anywhere: told by its first bytes, read without running anything."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from diffkit._errors import CheckpointError, OptionError
from diffkit.weights._carrying import KEY, carried, with_text

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since and before torch 1.6
_WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every name
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@frozen(eq=False)
class Weights:
    """The tensors of a file.

    Attributes:
        path: The file.
        tensors: Name -> tensor, on the CPU, perhaps still on disk.
        entry: Which of several sets of weights in the file they are; None if there is one.
        entries: All sets in the file.
        spec: What they are of, if `diffkit.weights.export` wrote the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entry: str | None = None
    entries: tuple[str, ...] = ()
    spec: Mapping[str, Any] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(path: str | Path, entry: str | None = None) -> Weights:
    """Return the weights in a PyTorch or safetensors file.

    Args:
        path: The file; its name's ending does not matter.
        entry: Which set of weights, if the file holds several, such as "model" and "ema". Without it "ema" is taken,
            with which published samples are made.
    Raises:
        CheckpointError: The file is missing, empty, damaged, holds anything but tensors, or lacks that entry.
    """
    path = Path(path)
    content = _content(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_article(content)}, not weights by name")
    sets = {name: dict(value) for name, value in content.items() if _is_weights(value)}
    if _is_weights(content):
        if entry is not None:
            raise CheckpointError(f"{path} holds one set of weights, so there is no entry {entry!r}; leave entry out")
        return Weights(path, _unwrapped(content), spec=carried(path, content))
    chosen = _choose(path, tuple(sets), entry, content)
    return Weights(path, _unwrapped(sets[chosen]), chosen, tuple(sets), carried(path, content[chosen]))


def _choose(path: Path, sets: tuple[str, ...], entry: str | None, content: Mapping[Any, Any]) -> str:
    if not sets:
        held = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{path} holds no weights by name (it holds {held})")
    if entry is None and "ema" not in sets and len(sets) > 1:
        raise OptionError(f"{path} holds several sets of weights; choose one: entry={' or '.join(map(repr, sets))}")
    chosen = entry or ("ema" if "ema" in sets else sets[0])
    if chosen not in sets:
        raise CheckpointError(f"{path} has no entry {chosen!r} (entries: {', '.join(map(repr, sets))})")
    return chosen


def _content(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file of weights; diffkit.load opens a saved system")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not size:
        raise CheckpointError(f"{path} is empty")
    if start[4:] == b"\0\0\0\0{":  # the size of a header, whose first byte may be that of a pickle
        return _from_safetensors(path)
    if start.startswith((_ZIP, _PICKLE)):
        return _from_torch(path, mapped=start.startswith(_ZIP))
    raise CheckpointError(f"{path} is no file of weights: neither PyTorch nor safetensors wrote it")


def _from_torch(path: Path, *, mapped: bool) -> Any:
    # DiT's training files hold the command line as a Namespace: plain attributes, nothing to run.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            if mapped and path.suffix != ".safetensors":  # which torch.load would take at its word
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes of unknown origin can fail in any way; each means that they are unreadable
            found = _GLOBAL.search(str(error))
            if not found:
                raise CheckpointError(f"{path} is damaged or truncated: {_first_line(error)}") from error
            name = found[1]
    raise CheckpointError(
        f"{path} holds more than tensors ({name}), and reading that could run code, so nothing was read; if you trust "
        "it, save its plain state_dict again"
    )


def _from_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            return with_text(tensors, (file.metadata() or {}).get(KEY))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {_first_line(error)}") from error


def _is_weights(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DDP and torch.compile put before every name."""
    found = dict(tensors)
    for prefix in _common(found):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _common(names: Mapping[str, Tensor]) -> Iterator[str]:
    rest = list(names)
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in rest)), None):
        yield prefix
        rest = [name.removeprefix(prefix) for name in rest]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")


def _article(value: Any) -> str:
    return f"a {type(value).__name__}"
