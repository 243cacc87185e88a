"""The order of examples in training, a function of (seed, step): no state to save, and O(1) to resume at any step."""

from __future__ import annotations

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.system.randomness import Purpose, key, keys

Indices = NDArray[np.int64]


@frozen
class DataOrder:
    """The order of the examples: endless epochs, each a permutation that depends on (seed, epoch) alone.

    Epochs follow each other without a gap and are cut into batches: a batch may hold the end of one epoch and the start
    of the next, so every example is seen equally often and none is dropped.

    Attributes:
        size: Number of examples, >= 1.
        batch_size: Examples per batch, 1..size.
        seed: Seed of the run.
        sequential: Whether every epoch takes the examples in their own order, for data that has to be read in it.
    """

    size: int
    batch_size: int
    seed: int
    sequential: bool = False
    _epochs: dict[int, Indices] = field(factory=dict, init=False, eq=False, repr=False)

    def epoch(self, number: int) -> Indices:
        """Return the order of the examples in epoch ``number``, (size,) int64; the last two are cached."""
        if number not in self._epochs:
            ranks = keys(key(self.seed, Purpose.ORDER, number), self.size)
            for old in [e for e in self._epochs if e < number - 1 or e > number]:
                del self._epochs[old]
            self._epochs[number] = ranks.argsort(stable=True).numpy()
        return self._epochs[number]

    def batch(self, step: int) -> Indices:
        """Return the examples of the batch after ``step`` completed updates, by the data order, (batch_size,) int64."""
        at, end = step * self.batch_size, (step + 1) * self.batch_size
        if self.sequential:
            return np.arange(at, end) % self.size
        parts = []
        while at < end:
            number, offset = divmod(at, self.size)
            parts.append(self.epoch(number)[offset : offset + end - at])
            at += len(parts[-1])
        return np.concatenate(parts)
