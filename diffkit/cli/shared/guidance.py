"""Guidance that needs a network, which a command line names by its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import python_objects
from diffkit.registry import canonical, registry
from diffkit.registry.resolve import resolve

if TYPE_CHECKING:
    from diffkit.evaluation.saved import Saved
    from diffkit.protocols import Guidance

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
    check_null(slot, saved)
    if slot is None:
        return None, saved
    name = canonical(slot[0])
    if name not in BY_FOLDER:
        return resolve("guidance", slot)[0], saved
    from diffkit.evaluation.saved_guidance import by_classifier, by_worse_system

    options = attrs.asdict(BY_FOLDER[name](**slot[1]))
    if name == "autoguidance":
        return by_worse_system(options.pop("model"), saved, **options), saved
    return by_classifier(options.pop("classifier"), saved, **options)


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
