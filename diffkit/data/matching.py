"""Match the classes of data with those of a run by name, as each folder of images numbers its own classes from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices
from diffkit.errors import DataError
from diffkit.protocols import NO_CLASS

_SHOWN = 10


class RenumberedData(Data):
    """Other data with its classes renumbered.

    Args:
        data: Data with classes.
        classes: Names of the classes in the new order, including all those of the data.
    """

    def __init__(self, data: Data, classes: Sequence[str]):
        assert data.classes is not None
        self.data, self.classes = data, tuple(classes)
        self.shape, self.bins, self.sequential = tuple(data.shape), data.bins, data.sequential
        own = [self.classes.index(name) for name in data.classes]
        self._numbers = torch.tensor([*own, NO_CLASS])  # index -1, no class, is the last entry

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return example ``index`` and its conditions."""
        image, conditions = self.data[index]
        return image, {k: int(self._numbers[int(v)]) if k == "y" else v for k, v in conditions.items()}

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices."""
        found = self.data.batch(indices)
        y = {"y": self._numbers[found.conditions["y"]]} if "y" in found.conditions else {}
        return found._replace(conditions={**found.conditions, **y})

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, with the classes as renumbered."""
        found = {**self.data.describe(), "classes": list(self.classes)}
        if "class_counts" in found:
            counts = dict(zip(self._numbers[:-1].tolist(), found["class_counts"], strict=True))
            found["class_counts"] = [counts.get(i, 0) for i in range(len(self.classes))]
        return found


def match_classes(data: Data, classes: Sequence[str] | None, *, whose: str = "the run", what: str = "the data") -> Data:
    """Return data with its classes renumbered as those of a run with the same names; unchanged without names.

    Args:
        data: The data.
        classes: Names of the run's classes, or None.
        whose: Owner of these classes in errors.
        what: Name of the data in errors.
    Raises:
        DataError: A class of the data is not one of the run's.
    """
    own = data.classes
    if own is None or classes is None or not has_class_names(own) or own == tuple(classes):
        return data
    foreign = [name for name in own if name not in classes]
    if foreign and not has_class_names(classes):
        return data
    if foreign:
        raise DataError(
            f"{class_difference_text(own, classes, whose=whose, what=what)}, and {names_text(foreign)} cannot be "
            "matched by name; give data of the same classes"
        )
    return RenumberedData(data, classes)


def has_class_names(classes: Sequence[str] | None) -> bool:
    """Return whether classes have names other than their numbers."""
    return classes is not None and list(classes) != [str(i) for i in range(len(classes))]


def class_difference_text(
    own: Sequence[str], classes: Sequence[str], *, whose: str = "the run", what: str = "the data"
) -> str:
    """Return the text of an error about data with other classes than a run's."""
    return f"{whose} has classes {names_text(classes)}; {what} has {names_text(own)}"


def names_text(names: Sequence[str]) -> str:
    """Return the first of some class names, and the number of the others, as text."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
