"""Rebuild a system from a spec or a saved folder; weights are never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from diffkit._version import __version__
from diffkit.errors import CheckpointError, DiffkitError, SpecError, UnknownComponentError, did_you_mean
from diffkit.registry import BUILT_IN, LOCAL, SLOTS, canonical, registry
from diffkit.runtime.files import load_weights
from diffkit.runtime.run_layout import CHECKPOINTS, RECIPE, SPEC, STEPS, WEIGHTS
from diffkit.runtime.strict_json import check_fields, json_object, reason, shown, word
from diffkit.runtime.weights_files import read_weights
from diffkit.system.attached import attach, read_base
from diffkit.system.cascade import Cascade
from diffkit.system.compose import compose
from diffkit.system.module import System
from diffkit.system.saving import FORMAT, frozen_file, part_spec
from diffkit.system.settings import Settings

_NONE = type(None)
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "data_shape": (list, tuple),
    "num_steps": (int,),
    "train_spacing": (int, str, list, tuple, dict, _NONE),
    "rescale_time": (bool,),
    "clip_x_start": (bool,),
    "bins": (int, dict, _NONE),
    "decoder": (dict,),
    "coupling": (dict,),
    "codec": (dict,),
    "time_argument": (str, _NONE),
    "time_to_argument": (str, _NONE),
    "sampling": (dict, _NONE),
}


def from_spec(
    spec: Mapping[str, Any],
    *,
    backbone: nn.Module | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    accept_origin: bool = False,
) -> System:
    """Rebuild a system from a spec, as `System.spec` returns it.

    Args:
        spec: The spec.
        backbone: The network, for a system that was composed with a foreign one.
        modules: Modules of parts with weights, by kind, for a system that was composed with such.
        device: As in `diffkit.compose`.
        accept_origin: Accept a part of the same name from another distribution than the spec names.
    Raises:
        SpecError: The spec is malformed, from a newer format, or a part of it is not installed here.
    """
    system = _without_adapter(spec, backbone, modules, device, accept_origin)
    _attach_of(system, spec, accept_origin)
    return system


def _without_adapter(
    spec: Mapping[str, Any],
    backbone: nn.Module | None,
    modules: Mapping[str, nn.Module] | None,
    device: str | torch.device | None,
    accept_origin: bool,
) -> System:
    if "classifier" in spec:
        raise SpecError(
            "this is a classifier of noisy data, which is used for guidance and is not a system; "
            "diffkit.weights.load_classifier reads its folder"
        )
    if "cascade" in spec:
        raise SpecError("this is a cascade, which is not one system; diffkit.load and diffkit sample read its folder")
    fmt = spec.get("format")
    if not isinstance(fmt, int) or isinstance(fmt, bool) or fmt < 1:
        raise SpecError(f"this is not a diffkit spec: its format is {shown(fmt)}, not a number from 1")
    if fmt > FORMAT:
        raise SpecError(
            f"this spec has format {fmt}, written by diffkit {word(spec.get('diffkit'))}; diffkit {__version__} reads "
            f"up to {FORMAT}; upgrade diffkit"
        )
    check_fields(spec, "the spec", SpecError, parts=dict, settings=dict, modules=(dict, _NONE), frozen=(dict, _NONE))
    parts, settings = spec["parts"], dict(_settings(spec["settings"]))
    kinds = {name: name for name in ("decoder", "coupling", "codec")} | {"train_spacing": "spacing"}
    for name, kind in kinds.items():
        if isinstance(settings.get(name), Mapping):
            settings[name] = _slot(kind, settings[name], accept_origin)
    check_fields(parts, "the spec", SpecError, **dict.fromkeys(SLOTS, object))
    slots: dict[str, Any] = {kind: _slot(kind, parts[kind], accept_origin) for kind in SLOTS if kind != "backbone"}
    network = _backbone_slot(parts["backbone"], backbone, accept_origin)
    for kind, name in (spec.get("modules") or {}).items():
        if kind not in (modules or {}):
            raise SpecError(
                f"this system has a module of its own for the {word(kind)} ({word(name)}); pass modules= with such a "
                f"module, in Python: diffkit.load(folder, modules={{{kind!r}: module}})"
            )
    return compose(**slots, **settings, backbone=network, modules=modules, device=device)


def load(
    folder: str | Path,
    *,
    backbone: nn.Module | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    accept_origin: bool = False,
    base: str | Path | None = None,
) -> System:
    """Rebuild a saved system with its weights, or a saved cascade, in eval mode.

    Args:
        folder: The folder of `System.save`, or of `Cascade.save`.
        backbone, modules, device, accept_origin: As in `from_spec`.
        base: Of a system with an adapter: the folder or file with the weights that it was trained beside, if they are
            not where they were.
    Returns:
        The system; of the folder of a cascade, the `Cascade`, which type checkers take for a system, too.
    Raises:
        CheckpointError: A file is missing, damaged, or its weights do not fit.
        SpecError: As `from_spec`.
    """
    folder = Path(folder)
    spec = read_spec(folder / SPEC)
    if "cascade" not in spec:
        return _system(folder, spec, accept_origin, backbone=backbone, modules=modules, device=device, base=base)
    if backbone is not None or modules or base is not None:
        raise SpecError(f"{folder} is a cascade of several networks; load its stages one by one with such arguments")
    return cast("System", _cascade(folder, spec["cascade"], device, accept_origin))


def load_system(
    folder: str | Path, *, backbone: nn.Module | None = None, device: str | torch.device | None = None
) -> System:
    """Return what `load` does, of a single system; the folder of a cascade is refused."""
    folder = Path(folder)
    return _system(folder, read_spec(folder / SPEC), False, backbone=backbone, device=device)


def _cascade(folder: Path, record: Any, device: str | torch.device | None, accept_origin: bool) -> Cascade:
    check_fields(record, "the cascade of the spec", SpecError, stages=list, noise=list)
    stages = []
    for number, name in enumerate(record["stages"], start=1):
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..", "."):
            raise SpecError(f"stage {number} of {folder} is {shown(name)}, not the name of a folder in it")
        try:
            spec = read_spec(folder / name / SPEC)
            stages.append(_system(folder / name, spec, accept_origin, device=device))
        except (CheckpointError, SpecError) as error:
            raise type(error)(f"stage {number}: {error}") from error
    return Cascade(stages, noise=record["noise"]).eval()


def _system(
    folder: Path,
    spec: Mapping[str, Any],
    accept_origin: bool,
    *,
    backbone: nn.Module | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    base: str | Path | None = None,
) -> System:
    system = _without_adapter(spec, backbone, modules, device, accept_origin)
    if "adapter" in spec and system.network is not None:
        load_weights(system.network, read_base(folder, _base_of(spec), base))
        _attach_of(system, spec, accept_origin)
    elif base is not None:
        raise CheckpointError(f"{folder} has no adapter, so it has no base; leave base out")
    if (trained := system.trained) is not None:
        load_weights(trained, read_model(folder, spec))
    for kind, module in system.frozen.items():
        load_weights(module, read_weights(folder / frozen_file(kind), (spec.get("frozen") or {}).get(kind)))
    system.refresh()
    return system.eval()


def _base_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a spec says of the weights beside which its adapter was trained."""
    check_fields(spec["adapter"], "the spec's adapter", SpecError, name=str, base=dict)
    base: Mapping[str, Any] = spec["adapter"]["base"]
    check_fields(base, "the base in the spec", SpecError, path=str, digest=str)
    return base


def _attach_of(system: System, spec: Mapping[str, Any], accept_origin: bool) -> None:
    """Attach the adapter of a spec, if it has one, to the network of a system."""
    if "adapter" not in spec or system.network is None:
        return
    base, (name, options) = _base_of(spec), _slot("adapter", spec["adapter"], accept_origin)
    attach(system.network, registry("adapter").create(name, **options), base["path"], base["digest"])


def read_model(folder: Path, spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a saved system, or raise `CheckpointError`, with the command that restores a run's."""
    try:
        return read_weights(folder / WEIGHTS, spec.get("weights"))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_remedy(folder)}") from error


def read_spec(path: Path) -> dict[str, Any]:
    """Return the JSON object of a spec file, or raise `CheckpointError`."""
    try:
        return json_object(path)
    except FileNotFoundError as error:
        fix = _remedy(path.parent) or f"; a saved system is a folder with {SPEC} and {WEIGHTS}"
        raise CheckpointError(f"{path} is not there{fix}") from error
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{path.parent} is a file; a saved system is a folder with {SPEC} and {WEIGHTS}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {reason(error)}{_remedy(path.parent)}") from error


def _remedy(folder: Path) -> str:
    """The command that restores the files of a training run from its checkpoints; empty without checkpoints."""
    if not any((folder / CHECKPOINTS).glob(STEPS)):
        return ""
    text = "; the run's checkpoints still hold it: the command or call that trained it"
    recipe = folder / RECIPE
    if recipe.is_file():
        first = recipe.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        command = "train-classifier" if "train-classifier" in first else "train"
        text = f"; the run's checkpoints still hold it: diffkit {command} --config {recipe} --out {folder}"
    return f"{text} writes it again"


def _settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a spec, of the types that `compose` takes."""
    known = attrs.fields_dict(Settings)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise SpecError(
            f"the spec's settings do not fit diffkit {__version__}: {word(unknown[0])} is not one of them"
            + did_you_mean(unknown[0], known)
        )
    check_fields(settings, "the spec's settings", SpecError, **{name: _SETTINGS.get(name, object) for name in settings})
    return settings


def _backbone_slot(spec: Mapping[str, Any] | None, given: nn.Module | None, accept_origin: bool) -> Any:
    if given is not None:
        return given
    if spec is None:
        return None
    if isinstance(spec, Mapping) and spec.get("name", "") is None:
        raise SpecError(
            f"this system has a network of its own ({word(spec.get('class'))}); pass backbone= such a network, in "
            "Python: diffkit.load(folder, backbone=network)"
        )
    return _slot("backbone", spec, accept_origin)


def _slot(kind: str, spec: Mapping[str, Any], accept_origin: bool) -> tuple[str, Mapping[str, Any]]:
    what = f"{kind} of the spec"
    check_fields(spec, what, SpecError, name=str, origin=str, version=(str, _NONE), options=dict)
    name, origin, version = spec["name"], spec["origin"], spec.get("version", "")
    full = name if origin == LOCAL or accept_origin else f"{origin}:{name}"
    try:
        registry(kind).get(full)
    except UnknownComponentError as error:
        raise SpecError(_missing(kind, name, origin, version, error)) from error
    return full, _renamed(full, spec["options"])


def _renamed(part: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a part under their present names."""
    if part == "diffkit:huber" and "error" in options:
        space = {"output": "network"}.get(options["error"], options["error"])
        return {name: value for name, value in options.items() if name != "error"} | {"space": space}
    return options


def as_written_now(kind: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the spec of a part as this version writes it: options that it did not have yet have their defaults.

    Returns:
        The spec as it is, where the part cannot be made here.
    """
    try:
        name, options = _slot(kind, spec, accept_origin=False)
        return part_spec(kind, registry(kind).create(name, **options))
    except DiffkitError:
        return spec


def _missing(kind: str, name: str, origin: str, version: str, error: UnknownComponentError) -> str:
    if origin == LOCAL:
        return (
            f"this system uses {kind} {name!r}, registered in the process that saved it; register it here first "
            "(on the command line, --import FILE.py runs a file of yours)"
        )
    origin, version = word(origin), word(version)
    others = [e.origin for e in registry(kind).entries() if e.name == canonical(name)]
    text = f"this system uses {kind} {name!r} of {origin} {version}"
    if others:
        return f"{text}, but here that name is of {others[0]}; pass accept_origin=True to take it"
    if origin == BUILT_IN:
        return f"{text}, which diffkit {__version__} does not have"
    if "DIFFKIT_PLUGINS" in str(error):
        return f"{text}, which DIFFKIT_PLUGINS does not list; add {origin} to it"
    return f"{text}, which is not installed; run: pip install {origin}"
