"""Read named tensors from an untrusted file: its format is found by its first bytes, and nothing in it is executed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.strict_json import check_ordinary, reason, shown
from diffkit.weights._embedded_spec import KEY, embed_text, read_embedded_spec
from diffkit.weights._names import (
    Shapes,
    WeightSet,
    check_parametrized,
    find_weight_sets,
    flatten_dictionaries,
    tensors_under_prefix,
)

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since and before torch 1.6
_SHOWN = 5
_MOST_UNPACKED = 20  # weights of 16 bits that were rounded from 8 unpack to about twice their size
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ANCHORS: Shapes = dict.fromkeys(
    ("input_blocks.0.0.weight", "time_embed.0.weight", "x_embedder.proj.weight", "blocks.0.attn.qkv.weight")
)
"""Pairs of names that only the public networks have: of U-Nets and classifiers, and of transformers."""


@frozen(eq=False)
class FileWeights:
    """The weights read from a file.

    Attributes:
        path: The file.
        tensors: Tensors by name, on the CPU, maybe memory-mapped; all of the file's if no expected name is found.
        entry: Name of this set of weights, if the file has several; else None.
        entries: All sets in the file.
        spec: The spec of the system, if `diffkit.weights.export` wrote the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entry: str | None = None
    entries: tuple[str, ...] = ()
    spec: Mapping[str, Any] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_weights_file(path: str | Path, entry: str | None = None, expected: Shapes | None = None) -> FileWeights:
    """Read the weights in a PyTorch or safetensors file, by names without the prefixes of trainers and wrappers.

    Args:
        path: The file, with any suffix.
        entry: Name of the set of weights, if the file has several, such as "model" and "ema". By default a running
            mean, with which published samples are drawn.
        expected: Names and shapes of the network to load; by default those of any public network.
    Raises:
        CheckpointError: The file is missing, empty or damaged, has more than tensors, or has no such entry.
        OptionError: The file has several sets of weights that fit equally well, or a running mean without names.
    """
    path = Path(path)
    content = _read_content(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_type_text(content)}, not weights by name")
    expected = _ANCHORS if expected is None else expected
    try:
        found = flatten_dictionaries(content)
        check_parametrized(found.tensors, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not found.tensors:
        contents = ", ".join(shown(key) for key in list(content)[:5]) or "nothing"
        raise CheckpointError(f"{path} holds no weights by name (it holds {contents})")
    there = find_weight_sets(found.tensors, expected)
    if not there:
        _check_entry(path, entry, ("",))
        return FileWeights(path, found.tensors)
    place, names = _choose_weight_set(path, there, entry), tuple(each.name for each in there)
    if entry is None and not place.is_running_mean and (nameless := found.nameless_mean):
        raise OptionError(
            f"{path} holds its running mean {shown(nameless)} as a list without names; save the mean as a state_dict",
            fix={"entry": place.name},
        )
    spec = read_embedded_spec(path, found.dictionaries.get(place.prefix))
    return FileWeights(
        path,
        tensors_under_prefix(found.tensors, place.prefix),
        place.name or None,
        () if names == ("",) else names,
        spec,
    )


def _choose_weight_set(path: Path, there: Sequence[WeightSet], entry: str | None) -> WeightSet:
    """Return the set of weights with the name of an entry, by default the preferred one of those that fit."""
    if entry is not None:
        names = [each.name for each in there]
        there = [each for each in there if each.name == entry] or [
            each for each in there if _has_part(each.name, entry)
        ]
        if not there:
            _check_entry(path, entry, names)
    first = max(there, key=lambda place: place.rank)
    among = [repr(each.name) for each in there if each.rank == first.rank]
    if len({*among}) < len(among):
        prefixes = [each.prefix for each in there if repr(each.name) in among]
        raise CheckpointError(
            f"{path} holds names of one network under several prefixes, {' and '.join(map(shown, prefixes[:_SHOWN]))}; "
            "save it again with one prefix on all names, or none"
        )
    if len(among) > 1:
        raise OptionError(
            f"{path} holds several sets of weights",
            fix=[{"entry": each.name} for each in there if each.rank == first.rank][:_SHOWN],
        )
    return first


def _has_part(name: str, entry: str) -> bool:
    """Whether an entry is a part of the name of a set of weights."""
    return f".{entry}." in f".{name}."


def _check_entry(path: Path, entry: str | None, names: Sequence[str]) -> None:
    if entry is None:
        return
    if list(names) == [""]:
        raise CheckpointError(f"{path} holds one set of weights, so there is no entry {entry!r}; leave entry out")
    raise CheckpointError(f"{path} has no entry {entry!r} (entries: {', '.join(map(repr, names))})")


def _read_content(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file of weights; diffkit.load opens a saved system")
        check_ordinary(path)
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if not size:
        raise CheckpointError(f"{path} is empty")
    if start[4:] == b"\0\0\0\0{":  # the size of a safetensors header, whose first byte may be that of a pickle
        return _from_safetensors(path)
    if start.startswith((_ZIP, _PICKLE)):
        return _from_torch(path, mapped=start.startswith(_ZIP) and not _is_compressed(path, size))
    raise CheckpointError(f"{path} is not a file of weights: neither PyTorch nor safetensors wrote it")


def _from_torch(path: Path, *, mapped: bool) -> Any:
    # DiT's training files hold the command line as a Namespace: plain attributes, nothing to run.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            if mapped and path.suffix != ".safetensors":  # torch.load would trust that ending
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes of unknown origin may raise any error
            found = _GLOBAL.search(str(error))
            if not found:
                raise CheckpointError(f"{path} is damaged or truncated: {_first_line(error)}") from error
            name = found[1]
    raise CheckpointError(
        f"{path} holds more than tensors ({name}), and reading that could run code, so nothing was read; if you trust "
        f"it, save its plain state_dict again, from torch.load({str(path)!r}, weights_only=False)"
    )


def _is_compressed(path: Path, size: int) -> bool:
    """Whether a PyTorch file was compressed after it was saved; such a file cannot be memory-mapped.

    Raises:
        CheckpointError: The file would unpack to much more than weights do.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # torch reports the fault
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_UNPACKED * size:
        raise CheckpointError(f"{path} has {size} bytes and would unpack to {unpacked}, far more than weights do")
    return any(member.compress_type != ZIP_STORED for member in members)


def _from_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
            return embed_text(tensors, (file.metadata() or {}).get(KEY))
    except Exception as error:  # as above; safetensors has errors of several kinds
        raise CheckpointError(f"{path} is damaged or truncated: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (reason(error) or type(error).__name__).splitlines()[0].rstrip(". ")


def _type_text(value: Any) -> str:
    return f"a {type(value).__name__}"
