"""Levels that are evenly spaced in some measure of noise."""

from __future__ import annotations

import numpy as np

from diffkit.errors import OptionError
from diffkit.table import F64, ProcessTable, distinct_levels


def check_count(count: int, available: int, where: str = "the table") -> None:
    """Raise `OptionError` unless there are that many levels."""
    if count < 1:
        raise OptionError("must be >= 1", option="steps", value=count)
    if count > available:
        raise OptionError(f"must be <= {available}, the number of levels of {where}", option="steps", value=count)


def check_count_from_level_1(name: str, count: int, num_steps: int) -> None:
    """Raise `OptionError` unless there are that many levels, for a spacing that begins at level 1."""
    check_count(count, num_steps)
    if count == 1 < num_steps:
        raise OptionError(f"spacing '{name}1' is level 1 alone, where no chain can start; use 1 or 'trailing1'")


def even(measure: F64, count: int) -> tuple[int, ...]:
    """Return levels that are even in a monotonic measure, from level 1 to T.

    Args:
        measure: Its values at levels 0..T, (T+1,); not finite at a level T without signal.
        count: Number of levels.
    """
    num_steps = len(measure) - 1
    check_count(count, num_steps)
    if count == 1:
        return (num_steps,)
    values = measure[1:]
    faint = not np.isfinite(values[-1])  # no signal at T: level T is included, and the others are even below it
    inner = values[:-1] if faint else values
    if count - faint <= 1 or len(inner) < 2:
        return distinct_levels([1, *[num_steps] * (count - 1)], num_steps)
    targets = np.linspace(inner[0], inner[-1], count - faint)
    found = [1 + int(np.argmin(np.abs(inner - w))) for w in targets]
    return distinct_levels(found + [num_steps] * faint, num_steps)


def noise_ratio(table: ProcessTable) -> F64:
    """Return sigma / alpha of levels 0..T."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(np.exp(-table.log_snr / 2))
