"""Spacings with one mistake each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from attrs import field, frozen

from diffkit.options import integer
from diffkit.protocols import GridSpacing, LevelSpacing
from mutants import Mutant


@frozen
class Even(LevelSpacing):
    """Evenly from 1 to T, written out."""

    uses_noise: ClassVar[bool] = False

    count: int = integer(5, ge=1)

    def levels(self, table):
        return sorted({int(k) for k in np.linspace(1, table.num_steps, self.count).round()})


@frozen
class FromZero(Even):
    """Levels counted from 0, as arrays are."""

    def levels(self, table):
        return [k - 1 for k in Even.levels(self, table)]


@frozen
class Drawn(Even):
    """Drawn anew at every call."""

    calls: Any = field(factory=lambda: [0], init=False, eq=False)

    def levels(self, table):
        self.calls[0] += 1
        return Even.levels(self, table)[self.calls[0] % 2 :] or [1]


@frozen
class ByNoise(Even):
    """Even in log-SNR, though it says that noise does not matter."""

    def levels(self, table):
        known = np.nan_to_num(table.log_snr[1:], neginf=-50.0)
        targets = np.linspace(known[0], known[-1], self.count)
        return sorted({1 + int(np.argmin(np.abs(known - w))) for w in targets})


@frozen
class OneMore(Even):
    """Counts the gaps, not the levels."""

    def levels(self, table):
        return sorted({int(k) for k in np.linspace(1, table.num_steps, self.count + 1).round()})


@frozen
class Between(GridSpacing):
    """Evenly in log_snr between the ends, written out."""

    count: int = integer(5, ge=1)

    def log_snr(self, table):
        known = table.log_snr[np.isfinite(table.log_snr)]
        return np.linspace(known[0], known[-1], self.count + 1)[1:]


@frozen
class NoisiestFirst(Between):
    """In the order in which samplers visit them."""

    def log_snr(self, table):
        return Between.log_snr(self, table)[::-1]


MUTANTS = [
    Mutant("spacing", NoisiestFirst(), Between(), "noise_between_levels", "descending log_snr"),
    Mutant("spacing", OneMore(), Even(), "count_as_given", "5 levels"),
    Mutant("spacing", FromZero(), Even(), "levels_of_the_table", "ascending levels in 1"),
    Mutant("spacing", Drawn(), Even(), "same_table_same_levels", "the same levels"),
    Mutant("spacing", ByNoise(), Even(), "noise_as_declared", "every path"),
]
