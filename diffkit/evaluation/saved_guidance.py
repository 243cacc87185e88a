"""Guidance by networks in folders: a worse system, or a classifier of noisy data, after a check that it fits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from diffkit.data.matching import class_difference_text, has_class_names
from diffkit.errors import Message, OptionError, Setting, SpecError
from diffkit.evaluation.saved import Saved, class_names
from diffkit.guidance import Autoguidance, ClassifierGuidance
from diffkit.protocols import Guidance
from diffkit.runtime.files import weights_digest
from diffkit.runtime.run_layout import SPEC
from diffkit.runtime.strict_json import check_fields, shown, word
from diffkit.system.guidance import networks_of
from diffkit.system.loading import load_system, read_spec
from diffkit.system.module import System
from diffkit.weights import load_classifier


def described(guidance: Guidance | None) -> str | None:
    """Return words that stand for a guidance: its options but for defaults, its networks' weights included."""
    if guidance is None or not attrs.has(type(guidance)):
        return None if guidance is None else repr(guidance)
    networks = networks_of([guidance])
    options = ", ".join(
        f"{field.name}={_weights(value) if value in networks else repr(value)}"
        for field in _options(guidance)
        if (value := getattr(guidance, field.name)) in networks or repr(value) != repr(field.default)
    )
    return f"{type(guidance).__name__}({options})"


def without_defaults(description: str, guidance: Guidance | None) -> str:
    """Return a description of an earlier version, which has all of its options, as `described` has it."""
    for field in _options(guidance):
        at_default = re.escape(f"{field.name}={field.default!r}")
        description = re.sub(rf"(?<=\(){at_default}(, |(?=\)))|, {at_default}(?=[,)])", "", description)
    return description


def _options(guidance: Guidance | None) -> list[attrs.Attribute[Any]]:
    kind: Any = type(guidance)
    return [field for field in attrs.fields(kind) if field.init] if attrs.has(kind) else []


def by_worse_system(folder: Path, saved: Saved, **options: Any) -> Guidance:
    """Return guidance away from the worse system in a folder; ``options`` are those of `Autoguidance`."""
    if misfit := _class_problem(folder, saved):
        raise OptionError(Message(Setting("model", part="guidance"), f" does not fit this system: {misfit}"))
    return Autoguidance(load_system(folder, device=saved.system.device), **options)


def by_classifier(folder: Path, saved: Saved, **options: Any) -> tuple[Guidance, Saved]:
    """Return guidance by the classifier in a folder, and the system with the classes that can be chosen.

    Args:
        folder: A run of a classifier, or an imported one.
        saved: The system; if it has no classes, they are the classifier's.
        options: Those of `ClassifierGuidance`.
    """
    if folder.is_file():
        setting = Setting("classifier", str(folder), "guidance")
        raise OptionError(Message(setting, f" is a file; diffkit import {folder} --to FOLDER makes a folder"))
    network = load_classifier(folder, device=saved.system.device)
    spec = read_spec(folder / SPEC)
    _check_fit(spec, saved, _class_problem(folder, saved))
    conditional = saved.num_classes is not None
    if not conditional:
        saved = attrs.evolve(saved, num_classes=spec["num_classes"], classes=class_names(folder))
    found = ClassifierGuidance(network, **options, label="y" if conditional else "class")
    return found, attrs.evolve(saved, null_class=None)


def _class_problem(folder: Path, saved: Saved) -> str | None:
    """Return how the classes of the guiding run differ from the system's, if both have names."""
    own, classes = class_names(folder), saved.classes
    if (
        saved.num_classes is None
        or own is None
        or classes is None
        or not (has_class_names(own) and has_class_names(classes))
    ):
        return None
    return (
        None
        if own[: len(classes)] == classes
        else class_difference_text(own, classes, whose="the system", what=str(folder))
    )


def _check_fit(spec: Mapping[str, Any], saved: Saved, of_classes: str | None) -> None:
    """Refuse a classifier of other data, other classes or other noise than the system's."""
    system, problems = saved.system, [of_classes] if of_classes else []
    shape, count = tuple(spec["data_shape"]), spec["num_classes"]
    if shape != (seen := system.parts.data_shape):
        problems.append(f"it reads data of shape {shape}, the system's network sees {seen}")
    if saved.num_classes is not None and saved.num_classes > count:
        problems.append(f"it has {count} classes, the system has {saved.num_classes}")
    if "parts" in spec:  # an imported one has no parts
        problems += _noise_problems(spec, system)
    if problems:
        text = f" does not fit this system: {'; '.join(problems)}"
        raise OptionError(Message(Setting("classifier", part="guidance"), text))


def _noise_problems(spec: Mapping[str, Any], system: System) -> list[str]:
    check_fields(spec, "the classifier's spec", SpecError, parts=dict, settings=dict)
    check_fields(spec["parts"], "the classifier's spec", SpecError, schedule=dict)
    check_fields(spec["parts"]["schedule"], "its schedule", SpecError, name=str, options=dict)
    check_fields(spec["settings"], "the classifier's settings", SpecError, num_steps=int, rescale_time=bool)
    own = json.loads(json.dumps(system.spec()))
    found = []
    was, now = spec["parts"]["schedule"], own["parts"]["schedule"]
    if (was["name"], was["options"]) != (now["name"], now["options"]):
        found.append(f"it was trained on {_named(was)}, the system on {_named(now)}")
    names = ("num_steps", "rescale_time")
    return found + [
        f"it was trained with {name}={shown(spec['settings'][name])}, the system with {own['settings'][name]}"
        for name in names
        if spec["settings"][name] != own["settings"][name]
    ]


def _named(part: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={shown(value)}" for key, value in part["options"].items())
    return f"schedule {word(part['name'])}({options})"


def _weights(network: nn.Module) -> str:
    """A network's class, and 16 digits that stand for its weights."""
    return f"{type(network).__name__} {weights_digest(network.state_dict())[:16]}"
