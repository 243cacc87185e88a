"""A system as a folder: ``spec.json`` says what it is, ``model.safetensors`` holds its weights.

A spec holds registered names and plain options only. There is no import path in it, so loading one cannot run
anything but the parts it names; weights are never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from diffkit import __version__
from diffkit._errors import CheckpointError, OptionError, SpecError, UnknownComponentError
from diffkit.composer import compose
from diffkit.registry import BUILT_IN, KINDS, LOCAL, canonical, option_names, registry
from diffkit.system import System

FORMAT = 1
SPEC, WEIGHTS = "spec.json", "model.safetensors"


def spec_of(system: System) -> dict[str, Any]:
    """Return a system as plain JSON data: format, parts with options and provenance, settings.

    Raises:
        SpecError: A part was given as an instance of a class that was never registered, so no name can rebuild it.
    """
    parts: dict[str, Any] = {
        kind: _part_spec(kind, getattr(system.parts, kind)) for kind in KINDS if kind != "backbone"
    }
    parts["backbone"] = _backbone_spec(system)
    settings = {name: _plain(value) for name, value in attrs.asdict(system.settings, recurse=False).items()}
    return {"format": FORMAT, "diffkit": __version__, "parts": parts, "settings": settings}


def from_spec(
    spec: Mapping[str, Any],
    *,
    backbone: nn.Module | None = None,
    device: str | torch.device = "cpu",
    accept_origin: bool = False,
) -> System:
    """Rebuild a system from what `System.spec` returned.

    Args:
        spec: The spec.
        backbone: The network, for a system that was composed with a foreign one.
        device: Where the network is built.
        accept_origin: Take a part of the same name from another distribution than the spec names.
    Raises:
        SpecError: The spec is malformed, from a newer format, or a part of it is not installed here.
    """
    fmt = spec.get("format")
    if not isinstance(fmt, int) or fmt < 1:
        raise SpecError(f"this is no diffkit spec: its format is {fmt!r}, not a number from 1")
    if fmt > FORMAT:
        raise SpecError(
            f"this spec has format {fmt}, written by diffkit {spec.get('diffkit')}; diffkit {__version__} reads up to "
            f"{FORMAT}; upgrade diffkit"
        )
    try:
        parts, settings = dict(spec["parts"]), dict(spec["settings"])
        slots: dict[str, Any] = {k: _slot(k, parts[k], accept_origin) for k in KINDS if k != "backbone"}
        network = _backbone_slot(parts["backbone"], backbone, accept_origin)
    except KeyError as error:
        raise SpecError(f"the spec lacks {error.args[0]!r}") from error
    try:
        return compose(**slots, **settings, backbone=network, device=device)
    except TypeError as error:
        if isinstance(error, OptionError):
            raise
        raise SpecError(f"the spec's settings do not fit diffkit {__version__}: {error}") from error


def save(system: System, folder: str | Path) -> Path:
    """Write spec and weights; each file appears whole or not at all, the spec last.

    Args:
        system: What to save.
        folder: Made if it is not there.
    Returns:
        The folder.
    Raises:
        SpecError: A part cannot be named in a spec.
        CheckpointError: The folder cannot be written.
    """
    from safetensors.torch import save as to_bytes

    spec = spec_of(system)
    folder = Path(folder)
    weights = {} if system.backbone is None else _storable(system.backbone.state_dict())
    content = to_bytes(weights)
    spec["weights"] = {"file": WEIGHTS, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, content)
        write_atomically(folder / SPEC, (json.dumps(spec, indent=2) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}; {len(content)} bytes are needed") from error
    return folder


def load(
    folder: str | Path,
    *,
    backbone: nn.Module | None = None,
    device: str | torch.device = "cpu",
    accept_origin: bool = False,
) -> System:
    """Rebuild a saved system with its weights, ready to sample (dropout off).

    Args:
        folder: As given to `System.save`.
        backbone, device, accept_origin: As in `from_spec`.
    Raises:
        CheckpointError: A file is missing, damaged, or its weights do not fit.
        SpecError: As `from_spec`.
    """
    folder = Path(folder)
    spec = read_spec(folder / SPEC)
    system = from_spec(spec, backbone=backbone, device=device, accept_origin=accept_origin)
    if system.backbone is not None:
        load_weights(system.backbone, read_weights(folder / WEIGHTS, spec.get("weights")))
    return system.eval()


def read_spec(path: Path) -> dict[str, Any]:
    """Return the JSON object of a spec file, or raise `CheckpointError`."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; a saved system is a folder with {SPEC} and {WEIGHTS}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return spec


def read_weights(path: Path, record: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file after comparing it with its recorded size and SHA-256.

    Raises:
        CheckpointError: The file is missing, truncated, altered or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if record is not None and len(content) != record.get("size"):
        raise CheckpointError(f"{path} is damaged: it has {len(content)} bytes, {record.get('size')} were written")
    if record is not None and hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")
    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from error


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network, or raise `CheckpointError` that names the first differences."""
    own = network.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or foreign or shapes:
        faults = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        faults += [f"{len(foreign)} unknown (first: {foreign[0]})"] if foreign else []
        faults += [
            f"{len(shapes)} of another shape (first: {k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)})"
            for k in sorted(shapes)[:1]
        ]
        raise CheckpointError(f"these weights do not fit the network: {', '.join(faults)}")
    network.load_state_dict(dict(weights))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, after a crash too."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which takes its place if the block succeeds and is removed if not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the system has such a thing."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _part_spec(kind: str, part: Any) -> dict[str, Any]:
    known = registry(kind).provenance(part)
    if known is None:
        name = type(part).__name__
        raise SpecError(
            f"{kind} {name!r} is of a class that has no registered name, so nothing could rebuild this system; "
            f"put @registry({kind!r}).register({name.lower()!r}) on the class"
        )
    options = {name: _plain(getattr(part, name)) for name in option_names(type(part)) or ()}
    return {"name": known.name, "options": options, "origin": known.origin, "version": known.version}


def _backbone_spec(system: System) -> dict[str, Any] | None:
    if system.recipe is not None:
        return _part_spec("backbone", system.recipe)
    if system.backbone is None:
        return None
    return {"name": None, "class": system.parts.names["backbone"]}


def _backbone_slot(spec: Mapping[str, Any] | None, given: nn.Module | None, accept_origin: bool) -> Any:
    if given is not None:
        return given
    if spec is None:
        return None
    if spec["name"] is None:
        raise SpecError(f"this system has a network of its own ({spec.get('class')}); pass backbone=")
    return _slot("backbone", spec, accept_origin)


def _slot(kind: str, spec: Mapping[str, Any], accept_origin: bool) -> tuple[str, Mapping[str, Any]]:
    name, origin, version = spec["name"], spec["origin"], spec.get("version", "")
    full = name if origin == LOCAL or accept_origin else f"{origin}:{name}"
    try:
        registry(kind).get(full)
    except UnknownComponentError as error:
        raise SpecError(_missing(kind, name, origin, version)) from error
    return full, spec["options"]


def _missing(kind: str, name: str, origin: str, version: str) -> str:
    if origin == LOCAL:
        return f"this system uses {kind} {name!r}, registered in the process that saved it; register it here first"
    others = [e.origin for e in registry(kind).entries() if e.name == canonical(name)]
    text = f"this system uses {kind} {name!r} of {origin} {version}"
    if others:
        return f"{text}, but here that name is of {others[0]}; pass accept_origin=True to take it"
    if origin == BUILT_IN:
        return f"{text}, which diffkit {__version__} does not have"
    return f"{text}, which is not installed; run: pip install {origin}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies that share no memory, as safetensors asks."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
