"""Stratified levels for the bound: one level of each stratum gives an unbiased estimate with a known error."""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from diffkit.errors import OptionError
from diffkit.table import F64


@frozen(eq=False)
class Strata:
    """A partition of levels 1..T into strata of consecutive levels, of which one level each is visited.

    Level 1, whose term is the decoder's and the largest, is a stratum of its own.

    Attributes:
        first: Lowest level of each stratum, ascending, (K,) int64.
        size: Number of levels in each stratum, (K,) int64.
    """

    first: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, num_steps: int, count: int | None) -> Strata:
        """Cut levels 1..num_steps into ``count`` strata; one for each level if it is None.

        Terms of the bound fall about as 1 / level at first and are nearly constant later, so the cuts are at equal
        steps of the mean of the share of levels and the share of log(level).

        Raises:
            OptionError: There are fewer levels than strata, or fewer than 2 strata for 2 or more levels.
        """
        if count is None:
            count = num_steps
        lowest = min(2, num_steps)
        if not lowest <= count <= num_steps:
            raise OptionError(
                f"must be in {lowest}..{num_steps}, or None for all", option="levels_per_example", value=count
            )
        first = np.array([1, *_strata_starts(num_steps, count - 1)], dtype=np.int64)
        return cls(first, np.diff(first, append=num_steps + 1))

    @property
    def complete(self) -> bool:
        """True if every level is visited."""
        return bool(np.all(self.size == 1))

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return one level of each stratum, ascending, (K,)."""
        if self.complete:
            return self.first
        return self.first + rng.integers(0, self.size)

    def total(self, terms: F64) -> F64:
        """Return an estimate of the sum over all levels from terms at one level of each stratum, (N, K) -> (N,)."""
        return np.asarray(terms @ self.size.astype(np.float64))

    def error(self, terms: F64) -> F64:
        """Return the standard error of `total` from the noise and the levels left out, or more, (N, K) -> (N,).

        The variance of a term is estimated as half its mean squared difference from the terms of the neighbouring
        strata, which is too large if terms follow a trend. The decoder's term has no neighbours and is left out; NaN if
        there are fewer than two others.
        """
        inner, size = terms[:, 1:], self.size[1:].astype(np.float64)
        if inner.shape[1] < 2:
            return np.full(len(terms), np.nan)
        squared = np.diff(inner, axis=1) ** 2
        left, right = np.pad(squared, ((0, 0), (1, 0)), "edge"), np.pad(squared, ((0, 0), (0, 1)), "edge")
        return np.asarray(np.sqrt((left + right) / 4 @ size**2))


def _strata_starts(num_steps: int, count: int) -> list[int]:
    """Return the lowest levels of ``count`` strata of 2..num_steps, ascending."""
    if count <= 0:
        return []
    levels = np.arange(2, num_steps + 2, dtype=np.float64)
    measure = (levels - 2) / (num_steps - 1) + np.log(levels / 2) / np.log((num_steps + 1) / 2)
    found = np.searchsorted(measure, np.linspace(0, 2, count, endpoint=False) - 1e-12) + 2
    for i in range(1, count):
        found[i] = max(found[i], found[i - 1] + 1)
    for i in range(count - 1, -1, -1):
        found[i] = min(found[i], num_steps - (count - 1 - i))
    return [int(k) for k in found]
