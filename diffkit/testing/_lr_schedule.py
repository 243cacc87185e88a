"""Laws of schedules of the learning rate."""

from __future__ import annotations

import math

from diffkit.protocols import LRSchedule
from diffkit.testing._check import Where, check, record_where
from diffkit.testing._close import require

_LENGTHS = (1, 2, 3, 10, 1000, 400_000)


def _steps(length: int) -> list[int]:
    """Some updates of a run: all of a short one, and the first and last of a long one."""
    return sorted({*range(min(length, 12)), *range(0, length, max(1, length // 50)), length - 1})


def _factors(part: LRSchedule, length: int) -> list[float]:
    found = []
    for step in _steps(length):
        where = record_where(Where(detail=f"update {step} of {length}"))
        factor = part.factor(step, length)
        require(isinstance(factor, int | float), "a number of Python", type(factor).__name__, where)
        found.append(factor)
    return found


@check("lr_schedule")
def finite_and_not_negative(part: LRSchedule) -> None:
    """The factor of every update is a finite number of Python, >= 0, for runs of any length.

    Usually: a division by a number of updates that is 0 in a short run, or a fall that goes on below 0.
    """
    for length in _LENGTHS:
        for step, factor in zip(_steps(length), _factors(part, length), strict=True):
            where = Where(detail=f"update {step} of {length}")
            require(math.isfinite(factor) and factor >= 0, "a finite factor >= 0", factor, where)


@check("lr_schedule")
def same_update_same_factor(part: LRSchedule) -> None:
    """The factor depends on the update and the length of the run only, not on earlier calls.

    Usually: a counter, a clock or a draw; a run that is resumed would learn at other rates.
    """
    for length in _LENGTHS:
        first = _factors(part, length)
        again = [part.factor(step, length) for step in reversed(_steps(length))][::-1]
        require(first == again, "the same factors again", "others", Where(detail=f"{length} updates"))


@check("lr_schedule")
def learns(part: LRSchedule) -> None:
    """In a run of any length some update has a factor above 0.

    Usually: a fall that begins after its own end, or a factor that is rounded to an integer.
    """
    for length in _LENGTHS:
        where = Where(detail=f"{length} updates")
        require(max(_factors(part, length)) > 0, "a factor above 0", "none", where)
