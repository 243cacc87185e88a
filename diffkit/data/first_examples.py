"""The first examples of other data, to see whether a system can learn them by heart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices, description


class FirstExamples(Data):
    """The first examples of other data; all of them if there are fewer.

    Args:
        data: The other data.
        count: How many, >= 1.
    """

    def __init__(self, data: Data, count: int):
        self.data, self.count = data, min(count, len(data))
        self.shape, self.bins, self.classes = tuple(data.shape), data.bins, data.classes
        self.deterministic, self.sequential = data.deterministic, data.sequential

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return example ``index`` and its conditions."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.data[index]

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices."""
        return self.data.batch(indices)

    def describe(self) -> dict[str, Any]:
        """Return the facts of the other data, with the number of examples used."""
        return self.data.describe() | description(self)
