"""Which levels a shorter chain keeps: ``levels(T, spacing)``.

A spacing is None (all), a count, a list of levels, or one of these strings:

=============== ==================================================================================
"250"           250 levels from first to last, evenly, as improved-diffusion rounds them
"10,15,20"      T in three equal sections, that many levels from each
"ddim50"        every k-th level from level 1 for the smallest k that gives exactly 50
"leading50"     every (T // 50)-th level from level 1
"trailing50"    T, T - T/50, ...: ends at level T
"linspace50"    evenly from level 1 to T, rounded to the nearest
=============== ==================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from diffkit._errors import OptionError
from diffkit.options import check_integer
from diffkit.table import check_levels

Spacing = int | str | Sequence[int] | None


def levels(num_steps: int, spacing: Spacing) -> tuple[int, ...]:
    """Return the levels to keep, ascending, each in 1..num_steps.

    Args:
        num_steps: T of the table to be respaced.
        spacing: See the module. A count of 1 keeps level T, the only one a chain of one step can start from (the
            reference's "1" keeps the cleanest).
    Raises:
        OptionError: More levels than there are, fewer than one, or a string of no known form.
    """
    if spacing is None:
        return tuple(range(1, num_steps + 1))
    if isinstance(spacing, str):
        return _from_text(num_steps, spacing.strip())
    if isinstance(spacing, int | np.integer):
        return _sections(num_steps, [check_integer("steps", spacing)])
    return tuple(int(k) for k in check_levels(spacing, num_steps))


def _from_text(num_steps: int, text: str) -> tuple[int, ...]:
    if text == "":
        return levels(num_steps, None)
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        return _sections(num_steps, [int(count) for count in text.split(",")])
    named = re.fullmatch(r"([a-z]+)(\d+)", text)
    if named and named[1] in _NAMED:
        count = int(named[2])
        _check_count(count, num_steps)
        return _NAMED[named[1]](num_steps, count)
    forms = "'250', '10,15,20', " + ", ".join(f"'{name}50'" for name in _NAMED)
    raise OptionError(f"spacing {text!r} has no known form; use a number, a list of levels, or one of {forms}")


def _check_count(count: int, available: int, where: str = "the table") -> None:
    if count < 1:
        raise OptionError(f"steps must be >= 1, got {count}")
    if count > available:
        raise OptionError(f"steps must be <= {available}, the number of levels of {where}, got {count}")


def _sections(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Equal sections (the first ones a level longer where T does not divide), each with its count."""
    if counts == [1]:
        return (num_steps,)
    size, extra = divmod(num_steps, len(counts))
    kept: list[int] = []
    start = 1
    for i, count in enumerate(counts):
        length = size + (1 if i < extra else 0)
        _check_count(count, length, "the table" if len(counts) == 1 else f"section {i + 1} of {num_steps} levels")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied, and rounded half to even: the reference's positions differ from i * stride in the
        # last digit, which moves a level for 310 of the counts up to 1000.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return tuple(kept)


def _ddim(num_steps: int, count: int) -> tuple[int, ...]:
    for stride in range(1, num_steps + 1):
        kept = range(1, num_steps + 1, stride)
        if len(kept) == count:
            return tuple(kept)
    raise OptionError(
        f"no whole stride gives exactly {count} of {num_steps} levels; use 'leading{count}' or 'trailing{count}'"
    )


def _leading(num_steps: int, count: int) -> tuple[int, ...]:
    stride = num_steps // count
    return tuple(1 + stride * i for i in range(count))


def _trailing(num_steps: int, count: int) -> tuple[int, ...]:
    return tuple(num_steps - (num_steps * i) // count for i in reversed(range(count)))


def _linspace(num_steps: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (num_steps,)
    return tuple(int(k) for k in np.round(np.linspace(1, num_steps, count)))


_NAMED: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "ddim": _ddim,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
}
