"""Schedules of the learning rate with one mistake each."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from diffkit.options import integer
from diffkit.protocols import LRSchedule
from mutants import Mutant


@frozen
class Steps(LRSchedule):
    """Half as large after every tenth of the run, written out."""

    parts: int = integer(10, ge=1)

    def factor(self, step, steps):
        return 0.5 ** (step * self.parts // steps)


@frozen
class PastItsEnd(Steps):
    """A linear fall that ends before the run does."""

    def factor(self, step, steps):
        return 1 - 1.1 * step / steps


@frozen
class NoShortRuns(Steps):
    """Divides by one less than the number of updates."""

    def factor(self, step, steps):
        return 1 - step / (steps - 1) if steps > 1 else float("nan")


@frozen
class Counts(Steps):
    """Counts its calls."""

    calls: Any = field(factory=lambda: [0], init=False, eq=False)

    def factor(self, step, steps):
        self.calls[0] += 1
        return 1 / self.calls[0]


@frozen
class WholeNumbers(Steps):
    """Rounds down where it should divide."""

    def factor(self, step, steps):
        return (steps - step - 1) // steps


MUTANTS = [
    Mutant("lr_schedule", PastItsEnd(), Steps(), "finite_and_not_negative", "finite factor >= 0"),
    Mutant("lr_schedule", NoShortRuns(), Steps(), "finite_and_not_negative", "update 0 of 1"),
    Mutant("lr_schedule", Counts(), Steps(), "same_update_same_factor", "the same factors"),
    Mutant("lr_schedule", WholeNumbers(), Steps(), "learns", "a factor above 0"),
]
