"""Guidance that needs a network, which a command line names by its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from diffkit.errors import OptionError, SpecError
from diffkit.options import python_objects
from diffkit.registry import canonical, registry
from diffkit.registry.resolve import resolve
from diffkit.runtime.strict_json import check_fields, shown, word

if TYPE_CHECKING:
    from torch import nn

    from diffkit.cli.shared.saved import Saved
    from diffkit.protocols import Guidance
    from diffkit.system.module import System

Slot = tuple[str, Mapping[str, Any]] | None


@frozen
class ByClassifier:
    """Towards a class, by the gradient of a classifier of noisy data.

    Attributes:
        classifier: Folder of the classifier: a run of diffkit train-classifier, or the result of diffkit import
            of a published file.
        scale: Strength; 1 is Bayes' rule, published models use up to 10.
        at: Where the gradient is taken: of the noisy data, or of the mean of the step.
        shift: "score" is for every sampler, "mean" is guided-diffusion's, for ancestral sampling.
        clip: Clip the estimate of clean data once more after shift "score".
    """

    classifier: Path
    scale: float = 1.0
    at: Literal["x_t", "mean"] = "x_t"
    shift: Literal["score", "mean"] = "score"
    clip: bool = False


@frozen
class ByWorse:
    """Away from the estimates of a worse system.

    Attributes:
        model: Folder of the worse system: a saved system or training run.
        scale: 1 is the system as it is; about 2 is usual.
        interval: Noise-to-signal ratios low,high between which it acts; everywhere by default.
    """

    model: Path
    scale: float
    interval: tuple[float, ...] | None = None


BY_FOLDER: Mapping[str, type[Any]] = {"autoguidance": ByWorse, "classifier": ByClassifier}
"""Guidance by name, with the options it has on a command line."""


def factory(name: str) -> Callable[..., Any]:
    """Return the class with a guidance's options on a command line.

    Raises:
        UnknownComponentError, OptionError: There is no such guidance, or it can be made in Python only.
    """
    found = BY_FOLDER.get(canonical(name)) or registry("guidance").get(name)
    if objects := python_objects(found):
        raise OptionError(
            f"guidance {name!r} is for Python only: its option {objects[0]!r} is a network or a function, which no "
            "command line can hold"
        )
    return found


def load_guidance(slot: Slot, saved: Saved) -> tuple[Guidance | None, Saved]:
    """Return the guidance that was chosen, and the system with the classes that can be chosen.

    Those of a system without classes are the classifier's.

    Raises:
        OptionError, CheckpointError, SpecError: An option is wrong, or what a folder holds does not fit the system.
    """
    name = None if slot is None else canonical(slot[0])
    check_null(slot, saved)
    if slot is None or name not in BY_FOLDER:
        return None if slot is None else resolve("guidance", slot)[0], saved
    if name == "autoguidance":
        return _by_worse(ByWorse(**slot[1]), saved), saved
    return _by_classifier(ByClassifier(**slot[1]), saved)


def check_null(slot: Slot, saved: Saved) -> None:
    """Raise `OptionError` for classifier-free guidance of a network without a label for "no class"."""
    if slot is None or canonical(slot[0]) != "cfg" or slot[1].get("null") is not None:
        return
    if saved.system.parts.null_conditions is None:
        lacking = "classes" if saved.num_classes is None else 'label for "no class"'
        raise OptionError(
            f"--guidance cfg compares a class with no class, and this network has no {lacking}; train one with "
            "--label-dropout 0.1"
        )


def refuse_folders(slot: Slot) -> None:
    """Raise `OptionError` if the guidance is one that needs a network."""
    if slot is not None and canonical(slot[0]) in BY_FOLDER:
        raise OptionError(f"guidance {slot[0]!r} needs a network, which only diffkit sample reads; use it from Python")


def described(guidance: Guidance | None) -> str | None:
    """Return words that stand for a guidance, its networks' weights included."""
    from diffkit.system.guidance import networks_of

    networks = () if guidance is None else networks_of([guidance])
    if not networks:
        return None if guidance is None else repr(guidance)
    values = {field.name: getattr(guidance, field.name) for field in attrs.fields(type(guidance))}  # type: ignore[arg-type]  # every guidance is an attrs class
    options = ", ".join(f"{name}={_weights(v) if v in networks else repr(v)}" for name, v in values.items())
    return f"{type(guidance).__name__}({options})"


def _by_worse(options: ByWorse, saved: Saved) -> Guidance:
    import diffkit
    from diffkit.guidance import Autoguidance

    problem = _class_problem(options.model, saved)
    if problem:
        raise OptionError(f"--guidance.model does not fit this system: {problem}")
    worse = diffkit.load(options.model, device=saved.system.device)
    return Autoguidance(worse, options.scale, options.interval)  # type: ignore[arg-type]  # it checks the length


def _by_classifier(options: ByClassifier, saved: Saved) -> tuple[Guidance, Saved]:
    from diffkit.cli.shared.saved import class_names
    from diffkit.guidance import ClassifierGuidance
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.loading import read_spec
    from diffkit.weights import load_classifier

    folder, system = options.classifier, saved.system
    if folder.is_file():
        raise OptionError(
            f"--guidance.classifier {folder} is a file; diffkit import {folder} --to FOLDER makes a folder"
        )
    network = load_classifier(folder, device=system.device)
    spec = read_spec(folder / SPEC)
    _check_fit(spec, saved, _class_problem(folder, saved))
    conditional = saved.num_classes is not None
    if not conditional:
        saved = attrs.evolve(saved, num_classes=spec["num_classes"], classes=class_names(folder))
    label = "y" if conditional else "class"
    given = {k: v for k, v in attrs.asdict(options).items() if k != "classifier"}
    return ClassifierGuidance(network, **given, label=label), attrs.evolve(saved, null_class=None)


def _class_problem(folder: Path, saved: Saved) -> str | None:
    """Return how the classes of the guiding run differ from the system's, if both have names."""
    from diffkit.cli.shared.saved import class_names
    from diffkit.data.matching import class_difference_text, has_class_names

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
    if shape != system.data_shape:
        problems.append(f"it reads data of shape {shape}, the system makes {system.data_shape}")
    if saved.num_classes is not None and saved.num_classes > count:
        problems.append(f"it has {count} classes, the system has {saved.num_classes}")
    if "parts" in spec:  # an imported one has no parts
        problems += _noise_problems(spec, system)
    if problems:
        raise OptionError(f"--guidance.classifier does not fit this system: {'; '.join(problems)}")


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
    from diffkit.runtime.files import weights_digest

    return f"{type(network).__name__} {weights_digest(network.state_dict())[:16]}"
