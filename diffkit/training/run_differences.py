"""Differences between the run in a folder and the call of `train` that is to resume it: options, system, parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from diffkit.errors import CheckpointError, Message, changed
from diffkit.runtime.run_layout import CHECKPOINTS, SPEC
from diffkit.runtime.strict_json import check_fields, read_json, shown, word
from diffkit.system.loading import as_written_now
from diffkit.training.checkpoint import intact_manifests
from diffkit.training.config import CHANGEABLE_ON_RESUME, LR_SCHEDULE_FIELDS, OPTIMIZER_FIELDS, TrainConfig


def config_differences(old: TrainConfig, new: TrainConfig, done: int) -> list[str]:
    """Return "lr=0.0001, now lr=0.0002" for each field of the options that a resumed run must not change.

    Args:
        old, new: Options of the run, and those to resume it with.
        done: Updates that the run has made; the learning rate of each must stay as it was.
    """
    fixed = [field.name for field in attrs.fields(TrainConfig) if field.name not in CHANGEABLE_ON_RESUME]
    if old.optimizer_part != new.optimizer_part:
        fixed += OPTIMIZER_FIELDS
    was, now = old.lr_schedule_part, new.lr_schedule_part
    if new.epochs is None and any(was.factor(step, old.steps) != now.factor(step, new.steps) for step in range(done)):
        fixed += [*LR_SCHEDULE_FIELDS, "steps"]
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in fixed]
    found = [changed(name, before, after) for name, before, after in pairs if before != after]
    return [Message(each, _OF_LENGTH) if is_of_length(each) else each for each in found]


_OF_LENGTH = ", which would change the learning rate of updates already made"


def is_of_length(difference: str) -> bool:
    """Return whether a difference is that of the number of updates, on which the learning rate of each depends."""
    return isinstance(difference, Message) and any(setting.option == "steps" for setting in difference.settings)


def data_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences between facts of a run's data and those of other data."""
    return [f"data {name}={old.get(name)!r}, now {now!r}" for name, now in new.items() if old.get(name) != now]


def trained_parameter_differences(frozen: Collection[str], network: nn.Module) -> list[str]:
    """Return which parameters of a network the run trained that are frozen now, and the other way round.

    Args:
        frozen: Names of the parameters that the run does not train.
        network: The network.
    """
    pairs = [(name, p.requires_grad) for name, p in network.named_parameters()]
    now_frozen = [name for name, trains in pairs if not trains and name not in frozen]
    now_trained = [name for name, trains in pairs if trains and name in frozen]
    found = [f"{_parameters_text(now_frozen)} trained, now frozen"] if now_frozen else []
    return found + ([f"{_parameters_text(now_trained)} frozen, now trained"] if now_trained else [])


def _parameters_text(names: Sequence[str]) -> str:
    return f"parameter {names[0]}" if len(names) == 1 else f"{len(names)} parameters (the first is {names[0]})"


def system_differences(folder: Path, spec: Mapping[str, Any]) -> list[str]:
    """Return the differences between a run's system and a spec.

    Where the run's spec.json is damaged, its system is that of the newest intact checkpoint.
    """
    try:
        return _spec_differences(read_comparable_spec(folder), spec)
    except CheckpointError:
        return _checkpoint_differences(folder / CHECKPOINTS, spec)


def _checkpoint_differences(checkpoints: Path, spec: Mapping[str, Any]) -> list[str]:
    """Return the differences between the system of the newest intact checkpoint and a spec."""
    for path, manifest in intact_manifests(checkpoints):
        with contextlib.suppress(CheckpointError):
            return _manifest_system_differences(manifest, spec, str(path))
    return []


def _manifest_system_differences(manifest: Mapping[str, Any], spec: Mapping[str, Any], what: str) -> list[str]:
    """Return the differences between a manifest's system and a spec; earlier versions stored only names of parts."""
    if "spec" in manifest:
        return _spec_differences(_check_comparable(manifest["spec"], what), spec)
    old = _check_comparable({"settings": {}, **manifest}, what)
    pairs = [(kind, old["parts"].get(kind), spec["parts"][kind]) for kind in spec["parts"]]
    named = [(kind, was and word(was.get("name")), now and now["name"]) for kind, was, now in pairs]
    return [f"{kind} {was}, now {now}" for kind, was, now in named if was != now]


def _spec_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for kind in new["parts"]:
        found += _part_differences(kind, old["parts"].get(kind), new["parts"][kind])
    was_set = {**old["settings"], **_classifier_settings(old)}
    for name, now in {**new["settings"], **_classifier_settings(new)}.items():
        was = was_set.get(name)
        if was != now and name != "sampling":  # without effect on training
            found.append(changed(name, was, now))
    was_hashed, now_hashed = (_weight_digests(spec) for spec in (old, new))
    for what in sorted(was_hashed | now_hashed):
        was, now = was_hashed.get(what), now_hashed.get(what)
        if was != now:
            found.append(f"weights {word(what)} {shown(was)}, now {shown(now)}")
    return found


def _weight_digests(spec: Mapping[str, Any]) -> dict[str, str]:
    """The first digits of the digests of weights that are not trained: of the teacher, a base, and frozen modules."""
    hashed = {f"of the {kind}": (record or {}).get("sha256") for kind, record in (spec.get("frozen") or {}).items()}
    hashed["of the teacher"] = (spec.get("teacher") or {}).get("digest")
    hashed["beside the adapter"] = ((spec.get("adapter") or {}).get("base") or {}).get("digest")
    return {what: str(digest)[:12] for what, digest in hashed.items() if digest}


def _part_differences(kind: str, was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """Return the options of a part that differ, or both parts if their names differ."""
    if _without_recipe(was) in (_without_recipe(now), _without_recipe(_recipe_of(now))):
        return []
    if was is None or now is None or _without_recipe({**was, "options": 0}) != _without_recipe({**now, "options": 0}):
        return [f"{kind} {_part_text(was)}, now {_part_text(now)}"]
    old_options, new_options = (part.get("options") or {} for part in (as_written_now(kind, was), now))
    pairs = [(f"{kind}.{name}", old_options.get(name), new_options.get(name)) for name in new_options | old_options]
    return [changed(name, old, new) for name, old, new in pairs if old != new]


def _classifier_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a classifier: options of its network, and its classes; empty for a system."""
    return {**spec["classifier"], "num_classes": spec.get("num_classes")} if "classifier" in spec else {}


def _without_recipe(part: Mapping[str, Any] | None) -> Any:
    """Return a part without its version, and without the recipe of a network that the user brought."""
    return None if part is None else {key: value for key, value in part.items() if key not in ("version", "recipe")}


def _recipe_of(part: Mapping[str, Any] | None) -> Any:
    """Return the recipe that a network that the user brought was first built from; earlier versions wrote only that."""
    return part.get("recipe", part) if part else part


def _part_text(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "none"
    options = ", ".join(f"{key}={shown(value)}" for key, value in (part.get("options") or {}).items())
    return f"{word(part.get('name') or part.get('class'))}({options})"


def read_comparable_spec(folder: Path) -> dict[str, Any]:
    """Return the spec.json of a folder, after checking that it can be compared with another spec."""
    return _check_comparable(read_json(folder / SPEC, CheckpointError), str(folder / SPEC))


def _check_comparable(spec: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a spec, after checking that it can be compared with another one."""
    none = type(None)
    check_fields(
        spec, what, CheckpointError, parts=dict, settings=dict, classifier=(dict, none), num_classes=(int, none)
    )
    for kind, part in spec["parts"].items():
        if part is not None:
            check_fields(part, f"{kind} of {what}", CheckpointError, name=(str, none), options=(dict, none))
    return spec
