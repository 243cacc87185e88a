"""From a spec or a saved folder back to a system; weights are never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit import __version__
from diffkit._errors import CheckpointError, OptionError, SpecError, UnknownComponentError
from diffkit.composer import compose
from diffkit.files import load_weights, read_weights
from diffkit.folders import CHECKPOINTS, RECIPE, SPEC, STEPS, WEIGHTS
from diffkit.registry import BUILT_IN, KINDS, LOCAL, canonical, registry
from diffkit.spec import FORMAT
from diffkit.system import System


def from_spec(
    spec: Mapping[str, Any],
    *,
    backbone: nn.Module | None = None,
    device: str | torch.device | None = None,
    accept_origin: bool = False,
) -> System:
    """Rebuild a system from what `System.spec` returned.

    Args:
        spec: The spec.
        backbone: The network, for a system that was composed with a foreign one.
        device: As in `diffkit.compose`.
        accept_origin: Take a part of the same name from another distribution than the spec names.
    Raises:
        SpecError: The spec is malformed, from a newer format, or a part of it is not installed here.
    """
    if "classifier" in spec:
        raise SpecError(
            "this is a classifier of noisy data, which steers sampling and is no system; "
            "diffkit.weights.load_classifier reads its folder"
        )
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


def load(
    folder: str | Path,
    *,
    backbone: nn.Module | None = None,
    device: str | torch.device | None = None,
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
        load_weights(system.backbone, read_model(folder, spec))
    return system.eval()


def read_model(folder: Path, spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that lie beside a spec, or raise `CheckpointError`, which says how a run's come back."""
    try:
        return read_weights(folder / WEIGHTS, spec.get("weights"))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_remedy(folder)}") from error


def read_spec(path: Path) -> dict[str, Any]:
    """Return the JSON object of a spec file, or raise `CheckpointError`."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        wanted = _remedy(path.parent) or f"; a saved system is a folder with {SPEC} and {WEIGHTS}"
        raise CheckpointError(f"{path} is not there{wanted}") from error
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{path.parent} is a file; a saved system is a folder with {SPEC} and {WEIGHTS}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}{_remedy(path.parent)}") from error
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path} holds no JSON object{_remedy(path.parent)}")
    return spec


def _remedy(folder: Path) -> str:
    """What writes the files of a training run again, which its checkpoints hold; nothing for a folder without."""
    if not any((folder / CHECKPOINTS).glob(STEPS)):
        return ""
    text = "; the run's checkpoints hold it still: the command or call that trained it"
    recipe = folder / RECIPE
    if recipe.is_file():
        first = recipe.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        command = "train-classifier" if "train-classifier" in first else "train"
        text = f"; the run's checkpoints hold it still: diffkit {command} --config {recipe} --out {folder}"
    return f"{text} writes it again"


def _backbone_slot(spec: Mapping[str, Any] | None, given: nn.Module | None, accept_origin: bool) -> Any:
    if given is not None:
        return given
    if spec is None:
        return None
    if spec["name"] is None:
        raise SpecError(
            f"this system has a network of its own ({spec.get('class')}), which no name can rebuild; load it in "
            "Python, with such a network: diffkit.load(folder, backbone=network)"
        )
    return _slot("backbone", spec, accept_origin)


def _slot(kind: str, spec: Mapping[str, Any], accept_origin: bool) -> tuple[str, Mapping[str, Any]]:
    name, origin, version = spec["name"], spec["origin"], spec.get("version", "")
    full = name if origin == LOCAL or accept_origin else f"{origin}:{name}"
    try:
        registry(kind).get(full)
    except UnknownComponentError as error:
        raise SpecError(_missing(kind, name, origin, version, error)) from error
    return full, spec["options"]


def _missing(kind: str, name: str, origin: str, version: str, error: UnknownComponentError) -> str:
    if origin == LOCAL:
        return (
            f"this system uses {kind} {name!r}, registered in the process that saved it; register it here first "
            "(on the command line, --import FILE.py runs a file of yours)"
        )
    others = [e.origin for e in registry(kind).entries() if e.name == canonical(name)]
    text = f"this system uses {kind} {name!r} of {origin} {version}"
    if others:
        return f"{text}, but here that name is of {others[0]}; pass accept_origin=True to take it"
    if origin == BUILT_IN:
        return f"{text}, which diffkit {__version__} does not have"
    if "DIFFKIT_PLUGINS" in str(error):
        return f"{text}, which DIFFKIT_PLUGINS does not list; add {origin} to it"
    return f"{text}, which is not installed; run: pip install {origin}"
