"""A saved system or cascade, and the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from diffkit.errors import DataError, OptionError, did_you_mean
from diffkit.runtime.run_layout import CONFIG
from diffkit.runtime.strict_json import check_fields, read_json
from diffkit.system.cascade import Cascade
from diffkit.system.loading import load as load_any
from diffkit.system.loading import load_system
from diffkit.system.module import System


@frozen(eq=False)
class Saved:
    """A system with its weights.

    Attributes:
        system: The system, on the chosen device.
        num_classes: Number of classes of its network; None without classes.
        null_class: Label that means "no class"; None if there is none.
        classes: Their names, if they were saved with it.
        low_res: Size of the small images that it was trained to enlarge, if that was saved with it.
        cascade: The cascade whose base the system is, or None.
    """

    system: System
    num_classes: int | None
    null_class: int | None
    classes: tuple[str, ...] | None
    low_res: tuple[int, ...] | None = None
    cascade: Cascade | None = None

    @property
    def final(self) -> System:
        """The system that makes the samples: the last stage of a cascade."""
        return self.system if self.cascade is None else self.cascade.systems[-1]

    @property
    def low_res_channels(self) -> int:
        """Channels of the small images that its network reads; 0 if it reads none."""
        return self.system.parts.condition_channels

    @property
    def bins(self) -> int | None:
        """How many values data takes; None for continuous data."""
        return self.final.bins

    def labels(self, words: tuple[str, ...], count: int) -> list[int] | None:
        """Return a label for each of ``count`` samples, the classes in turn; None if the system has no classes.

        Args:
            words: Names or indices of classes; all of them if empty. "none" means no class.
            count: How many samples.
        Raises:
            OptionError: A class that is not there.
        """
        if self.num_classes is None:
            if words:
                raise OptionError("this system has no classes, so none can be chosen")
            return None
        chosen = [self.label(word) for word in words] or list(range(self.num_classes))
        return [chosen[i % len(chosen)] for i in range(count)]

    def label(self, word: str) -> int:
        """Return the index of one class, by name or index."""
        if self.classes and word in self.classes:
            return self.classes.index(word)
        if word.isdecimal() and int(word) < (self.num_classes or 0):
            return int(word)
        if word == "none" and self.null_class is not None:
            return self.null_class
        known = self.classes or (f"0 to {(self.num_classes or 0) - 1}",)
        raise OptionError(f"no class {word!r}{did_you_mean(word, self.classes or ())} (classes: {', '.join(known)})")

    def name(self, label: int) -> str:
        """Name of a class."""
        if label in (self.null_class, -1):
            return "none"
        return self.classes[label] if self.classes and label < len(self.classes) else str(label)


def load_samplable(folder: Path, device: torch.device) -> Saved:
    """Load what can be sampled: a cascade, or what `load` does.

    Raises:
        CheckpointError, SpecError: As `diffkit.load`.
    """
    found: System | Cascade = load_any(folder, device=device)
    if isinstance(found, System):
        return _saved(found, folder)
    return attrs.evolve(_saved(found.systems[0], folder), cascade=found)


def load(folder: Path, device: torch.device) -> Saved:
    """Load a saved system, or the newest weights of a training run.

    Raises:
        CheckpointError, SpecError: As `diffkit.load`; it is a cascade.
    """
    return _saved(load_system(folder, device=device), folder)


def _saved(system: System, folder: Path) -> Saved:
    if system.network is None:
        raise OptionError(f"{folder} is a system without a network; train one, or use it in Python, with model=")
    facts = _facts_of_data(folder)
    classes, low_res = (tuple(facts.get(name) or ()) or None for name in ("classes", "low_res"))
    count = system.parts.classes
    count = len(classes or ()) if count is None else count  # a backbone without a count was trained on those
    null = (system.parts.null_conditions or {}).get("y")
    return Saved(system, count or None, null if isinstance(null, int) else None, classes, low_res)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes of a run's data; None if they were not saved with it."""
    return tuple(_facts_of_data(folder).get("classes") or ()) or None


def _facts_of_data(folder: Path) -> Mapping[str, Any]:
    """Facts of the data that a run was trained on; empty for a system that was only saved."""
    try:
        found: Mapping[str, Any] = read_json(folder / CONFIG, DataError).get("data", {})
        check_fields(found, "data", DataError, classes=(list, type(None)), low_res=(list, type(None)))
    except DataError:
        return {}
    return found
