"""A system as plain data: registered names, options, provenance and settings.

A spec has no import paths, so rebuilding it runs only the code of the parts it names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from diffkit._version import __version__
from diffkit.errors import CheckpointError, OptionError, SpecError
from diffkit.options import option_names
from diffkit.protocols import Composition, LearnedPart, LevelSpacing
from diffkit.registry import SLOTS, registry
from diffkit.runtime.files import flush, new_file, replacing, unwrap_module, write_atomically, write_through
from diffkit.runtime.publishing import new_folder
from diffkit.runtime.run_layout import SPEC, WEIGHTS, is_run
from diffkit.runtime.strict_json import parse_json, readable_json, reason
from diffkit.runtime.weights_files import digest, weights_record, write_weights
from diffkit.system.attached import adapter_of, base_record
from diffkit.system.settings import Settings

FORMAT = 1


def spec_of(
    parts: Composition, settings: Settings, network: nn.Module | None, modules: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Return a system as plain JSON data: format, parts with options and provenance, settings.

    Args:
        parts, settings, network: Those of the system.
        modules: Those of its parts, by kind.
    Raises:
        SpecError: A part was given as an instance of a class that was never registered, so no name can rebuild it; or
            an option is of a type that JSON does not have.
    """
    named: dict[str, Any] = {kind: part_spec(kind, getattr(parts, kind)) for kind in SLOTS if kind != "backbone"}
    named["backbone"] = _backbone_spec(parts, None if network is None else unwrap_module(network))
    found = {"format": FORMAT, "diffkit": __version__, "parts": named, "settings": settings_spec(settings)}
    if (attached := adapter_of(network)) is not None:
        found["adapter"] = {**part_spec("adapter", attached.adapter), "base": base_record(attached)}
    foreign = foreign_modules(parts, modules, lambda kind: shape_of(kind, settings.data_shape, parts.data_shape))
    return found | ({"modules": foreign} if foreign else {})


def shape_of(kind: str, data_shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example as parts of a kind see it: data is what a codec sees, others see latents."""
    return data_shape if kind == "codec" else latent_shape


def foreign_modules(
    parts: Composition, modules: Mapping[str, nn.Module], shape_for: Callable[[str], tuple[int, ...]]
) -> dict[str, str]:
    """Return the class of each module of a part, by kind, that the part would not build for data of its shape."""
    found = {}
    for kind, module in modules.items():
        part: LearnedPart = getattr(parts, kind)
        if not is_built_by(partial(part.build, shape_for(kind)), module):
            found[kind] = type(module).__name__
    return found


def settings_spec(settings: Settings) -> dict[str, Any]:
    """Return settings as plain JSON data.

    Raises:
        SpecError: As `spec_of`.
    """
    values = attrs.asdict(settings, recurse=False)
    found: dict[str, Any] = {}
    if settings.decoder is None:
        del values["decoder"]
    else:
        del values["bins"]
        found["decoder"] = part_spec("decoder", values.pop("decoder"))
    for kind in ("coupling", "codec"):
        if (part := values.pop(kind)) is not None:
            found[kind] = part_spec(kind, part)
    if isinstance(settings.train_spacing, LevelSpacing):
        found["train_spacing"] = part_spec("spacing", values.pop("train_spacing"))
    for name in ("null_conditions", "sampling", "time_to_argument"):  # older specs do not have them
        if values[name] is None:
            del values[name]
    return written("the system", values) | found


def save(
    spec: Mapping[str, Any], trained: nn.Module | None, folder: str | Path, frozen: nn.ModuleDict | None = None
) -> Path:
    """Write spec and weights; each file appears whole or not at all, the spec last.

    Args:
        spec: The system's, as `spec_of` returns it.
        trained: What the system trains, if it has anything.
        folder: Created if missing.
        frozen: The system's frozen modules, each of which has a file of its own.
    Returns:
        The folder.
    Raises:
        OptionError: The folder holds a training run.
        CheckpointError: The folder cannot be written.
    """
    weights = {} if trained is None else unwrap_module(trained).state_dict()
    return write(spec, weights, folder, frozen)


def write(
    spec: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    folder: str | Path,
    frozen: nn.ModuleDict | None = None,
) -> Path:
    """Write a spec and the weights that belong to it, as `save` does.

    Args:
        spec: The spec; a record of the weights is added to it.
        weights: A state dict.
        folder: Created if missing.
        frozen: As in `save`; a record of each is added to the spec.
    Returns:
        The folder.
    Raises:
        OptionError: The folder holds a training run.
        CheckpointError: The folder cannot be written.
    """
    folder = Path(folder)
    if is_run(folder):
        raise OptionError(
            f"folder {str(folder)!r} holds a training run, whose result would be lost; save into another folder"
        )
    with _write_errors(folder, weights), new_folder(folder) as work:
        with new_file(work / WEIGHTS) as file:
            record = write_weights(file, weights)
        records = {}
        for kind, module in () if frozen is None else frozen.items():
            with new_file(work / frozen_file(kind)) as file:
                records[kind] = write_weights(file, module.state_dict())
        write_through(work / SPEC, _spec_bytes({**spec, **({"frozen": records} if records else {})}, record))
    return folder


def frozen_file(kind: str) -> str:
    """Return the name of the file of the frozen module of a kind of part, in a saved system."""
    return f"{kind}.safetensors"


def frozen_records(frozen: nn.ModuleDict) -> dict[str, Any]:
    """Return what a saved spec says of frozen modules: the record of each one's file; empty if there are none."""
    records = {kind: weights_record(module.state_dict()) for kind, module in frozen.items()}
    return {"frozen": records} if records else {}


def renew_frozen(records: Mapping[str, Any], frozen: nn.ModuleDict, folder: Path) -> None:
    """Write those frozen modules into a run's folder whose files there differ from their records, or are missing."""
    for kind, module in frozen.items():
        state = module.state_dict()
        with _write_errors(folder, state):
            path = folder / frozen_file(kind)
            if path.exists() and digest(path.read_bytes()) == records[kind]:
                continue
            with replacing(path) as temporary, temporary.open("r+b") as file:
                write_weights(file, state)
                flush(file)


def renew(
    spec: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    damaged: bool = False,
    before: Mapping[str, Any] | None = None,
    written: tuple[Path, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write spec and weights of a training run into its own folder again.

    The spec is written before the weights take their name, with the digests of the old and the new weights, so that the
    folder can be loaded after an interruption at any time.

    Args:
        spec, weights: As `write`.
        folder: The run's.
        damaged: The weights in the folder are damaged, so their digest is not recorded.
        before: Record of the weights in the folder, if known; else they are hashed.
        written: Another file with the same weights, and its record; it is copied.
    Returns:
        The record of the new weights.
    Raises:
        CheckpointError: The folder cannot be written.
    """
    with _write_errors(folder, weights):
        if before is None and not damaged and (folder / WEIGHTS).exists():
            before = digest((folder / WEIGHTS).read_bytes())
        with replacing(folder / WEIGHTS) as temporary:
            if written is not None:
                shutil.copyfile(written[0], temporary)
            with temporary.open("r+b") as file:
                record = write_weights(file, weights) if written is None else dict(written[1])
                flush(file)
            write_atomically(folder / SPEC, _spec_bytes(spec, record, before))
    return record


@contextmanager
def _write_errors(folder: Path, weights: Mapping[str, Tensor]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # no path has a zero byte
        size = sum(tensor.nbytes for tensor in weights.values())
        raise CheckpointError(f"cannot write {folder}: {reason(error)}; {size} bytes are needed") from error


def _spec_bytes(spec: Mapping[str, Any], record: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> bytes:
    weights = {"file": WEIGHTS, **record, **({"before": before} if before else {})}
    return readable_json({**spec, "weights": weights}).encode()


def part_spec(kind: str, part: Any) -> dict[str, Any]:
    """Return a part as plain JSON data: name, options and provenance.

    Raises:
        SpecError: Its class has no registered name, its options are unknown, or JSON cannot hold one.
    """
    known = registry(kind).provenance(part)
    if known is None:
        name = type(part).__name__
        raise SpecError(
            f"{kind} {name!r} is of a class that has no registered name, so nothing could rebuild this system; "
            f"put @registry({kind!r}).register({name.lower()!r}) on the class, or let an entry point name the class "
            "itself, not a function that makes one"
        )
    names = option_names(type(part))
    if names is None:
        raise SpecError(
            f"{kind} {known.name!r} is made by a class with its own __init__, so its options are unknown; "
            "make it a frozen attrs class"
        )
    options = written(f"{kind} {known.name!r}", {name: getattr(part, name) for name in names})
    return {"name": known.name, "options": options, "origin": known.origin, "version": known.version}


def _backbone_spec(parts: Composition, network: nn.Module | None) -> dict[str, Any] | None:
    """Spec of the part that builds the network; or the network's class, if no part builds the network in this form."""
    recipe = parts.backbone
    if recipe is None:
        return None if network is None else {"name": None, "class": parts.names["backbone"]}
    found = part_spec("backbone", recipe)
    attached = adapter_of(network)

    def build() -> nn.Module:
        built = recipe.build(parts.data_shape, parts.out_channels)
        if attached is not None:
            attached.adapter.attach(built)
        return built

    if network is None or is_built_by(build, network):
        return found
    return {"name": None, "class": type(network).__name__, "recipe": found}


def is_built_by(build: Callable[[], nn.Module | None], network: nn.Module) -> bool:
    """Return whether a function builds this network: the same modules, and weights of the same names and shapes.

    False for a network that was wrapped, or has replaced, adapted or parametrized layers. The function is called on the
    meta device; if it fails there, the network counts as the same. If it builds none, it does not.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = build()
    except Exception:  # foreign code may fail on the meta device
        return True
    return built is not None and _structure(built) == _structure(network)


def _structure(network: nn.Module) -> tuple[dict[str, type], dict[str, tuple[int, ...]]]:
    classes = {
        name: type_before_parametrizations(module) for name, module in network.named_modules(remove_duplicate=False)
    }
    return classes, {name: tuple(tensor.shape) for name, tensor in _tensors(network)}


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))


def written(what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain JSON data, with lists for tuples.

    Args:
        what: Their owner, for the message.
        options: Name -> value.
    Raises:
        SpecError: JSON cannot hold one of them.
    """
    for name, value in () if fits_json(options) else options.items():
        if not fits_json(value):
            raise SpecError(
                f"{what} cannot be saved: JSON cannot hold {name}={value!r}; give plain numbers, words or lists"
            )
    return {name: plain(value) for name, value in options.items()}


def fits_json(value: Any) -> bool:
    """Whether a value can be written as JSON and read back."""
    try:
        parse_json(json.dumps(value))
    except (TypeError, ValueError):  # of a type that JSON does not have, or circular
        return False
    return True


def plain(value: Any) -> Any:
    """Return a value with lists in place of tuples."""
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
