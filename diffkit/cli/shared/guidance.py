"""Guidance that needs a network, which a command line names by its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.errors import OptionError
from diffkit.options import python_objects
from diffkit.registry import canonical, registry
from diffkit.registry.resolve import resolve

if TYPE_CHECKING:
    from diffkit.evaluation.saved import Saved
    from diffkit.protocols import Guidance

Slot = tuple[str, Mapping[str, Any]] | None


FOLDERS: Mapping[str, tuple[str, str]] = {
    "autoguidance": ("model", "Folder of the worse system: a saved system or training run."),
    "classifier": (
        "classifier",
        "Folder of the classifier: a run of diffkit train-classifier, or the result of diffkit import of a published "
        "file.",
    ),
}
"""Guidance by a network -> its option that names the folder of the network on a command line, with its help."""


def guidance_class(name: str) -> Callable[..., Any]:
    """Return the class of a guidance.

    Raises:
        UnknownComponentError, OptionError: There is no such guidance, or it can be made in Python only.
    """
    found: Callable[..., Any] = registry("guidance").get(name)
    if canonical(name) not in FOLDERS and (objects := python_objects(found)):
        raise OptionError(
            f"guidance {name!r} is for Python only: its option {objects[0]!r} is a network or a function, which no "
            "command line can hold"
        )
    return found


def with_folder(options: Sequence[Option], name: str) -> list[Option]:
    """Return the options of a guidance by a network, which is named by its folder; the label is found there."""
    network, help_text = FOLDERS[name]
    folder: dict[str, Any] = {"kind": Path, "field": None, "about": lambda: help_text}
    chosen = [option for option in options if option.path[-1] != "label"]
    return [attrs.evolve(option, **folder) if option.path[-1] == network else option for option in chosen]


def with_guidance(parsed: ParsedOptions, guidance: Guidance | None) -> dict[str, Any]:
    """Return a call's option for the guidance that was chosen, none included; empty if the system's default holds."""
    return {"guidance": guidance} if "guidance" in parsed.chosen else {}


def load_guidance(slot: Slot, saved: Saved) -> tuple[Guidance | None, Saved]:
    """Return the guidance that was chosen, and the system with the classes that can be chosen.

    Those of a system without classes are the classifier's.

    Raises:
        OptionError, CheckpointError, SpecError: An option is wrong, or what a folder holds does not fit the system.
    """
    if slot is None:
        return None, saved
    name = canonical(slot[0])
    if name not in FOLDERS:
        return resolve("guidance", slot)[0], saved
    from diffkit.evaluation.saved_guidance import by_classifier, by_worse_system

    options = dict(slot[1])
    folder = options.pop(FOLDERS[name][0])
    if name == "autoguidance":
        return by_worse_system(folder, saved, **options), saved
    return by_classifier(folder, saved, **options)
