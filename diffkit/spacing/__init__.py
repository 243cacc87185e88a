"""Levels of a shorter chain: ``levels(T, spacing, table)``.

A spacing is None (all), a count, a list of levels, or one of these strings:

=============== ==================================================================================
"all"           every level, as None
"250"           250 levels from first to last, evenly, as improved-diffusion rounds them
"10,15,20"      T in three equal sections, that many levels from each
"ddim50"        every k-th level from level 1 for the smallest k that gives exactly 50
"leading50"     every (T // 50)-th level from level 1
"trailing50"    T, T - T/50, ...: ends at level T
"linspace50"    evenly from level 1 to T, rounded to the nearest
"quad20"        evenly in the square root of the level, from 1 to T: denser at clean levels
"time20"        evenly in the time that conditions the network
"logsnr20"      evenly in log-SNR
"karras20"      evenly in (sigma / alpha)^(1/7); "karras20:rho=5" in its fifth root, rho >= 1
"ays_sd15"      a grid that comes with diffkit (`grids`); "ays_sd15:20" stretched to 20 levels
"grid.json"     a grid from a file, see `diffkit.spacing.files`; "grid.json:20" stretched to 20 levels
=============== ==================================================================================

Those from "time20" on use the noise levels of the table. Where two of the computed levels coincide, the next free one
is used, so a spacing always has the given number of levels.

`nearest` turns noise levels of your own, given as sigma / alpha, into a list of levels.
`diffkit.spacing.optimal` finds the levels with the best variational bound from one measurement of a trained model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffkit.errors import OptionError, problem
from diffkit.options import check_integer, check_number
from diffkit.spacing import _even_grids
from diffkit.spacing._even_grids import EVEN_GRIDS, karras
from diffkit.spacing.files import GRIDS, grid, is_grid
from diffkit.table import F64, ProcessTable, check_levels

Spacing = int | str | Sequence[int] | None
SEEN = 0.05
"""Signal scale at the first level above which a remark is logged: it shifts the brightness of a white image by a
twentieth of the noise's standard deviation in every pixel. The published ddim20 on a cosine schedule leaves 0.076.
"""


def levels(num_steps: int, spacing: Spacing, table: ProcessTable | None = None) -> tuple[int, ...]:
    """Return the levels of a spacing, ascending, each in 1..num_steps.

    Args:
        num_steps: T of the table to be respaced.
        spacing: See the module. A count of 1 is level T, the only one from which a chain of one step can start
            (improved-diffusion's "1" is the cleanest level).
        table: The table to be respaced, for spacings that use noise levels.
    Raises:
        OptionError: More levels than there are, fewer than one, a string of unknown form, or a file that is not a grid.
    """
    if spacing is None:
        return tuple(range(1, num_steps + 1))
    if isinstance(spacing, str):
        if long := re.search(r"\d{19,}", spacing):
            raise OptionError(f"steps must be <= {num_steps}, got a number of {len(long[0])} digits")
        return _from_text(num_steps, spacing.strip(), table)
    if isinstance(spacing, int | np.integer):
        return _sections(num_steps, [check_integer("steps", spacing)])
    if isinstance(spacing, range) and len(spacing) > num_steps:  # which may be too long for any array
        raise OptionError(f"must lie in 1..{num_steps}", option="levels", value=spacing)
    given = np.asarray(spacing)
    if given.ndim and given.size and given.dtype.kind == "f":
        raise OptionError(
            f"levels must be integers, got {spacing!r}; for values of sigma / alpha, "
            "diffkit.spacing.nearest(system.table, [...]) returns the levels"
        )
    return tuple(int(k) for k in check_levels(spacing, num_steps))


def remark_on_start(training: ProcessTable, first: int, above: float = 0.0) -> str | None:
    """Return a remark if sampling starts below level T, where data still has signal; None otherwise.

    Args:
        training: The training table.
        first: The level that sampling starts from.
        above: Signal scale up to which there is no remark.
    """
    row = int(np.searchsorted(training.index, first))
    if row == training.num_steps or training.alpha[row] <= above:
        return None
    return (
        f"sampling starts at level {first}, not {training.index[-1]}, from pure noise, although that level still has "
        f"alpha_bar = {training.alpha_bar[row]:.3g}; a 'trailing' spacing ends at T"
    )


def remark_on_karras(training: ProcessTable, steps: Spacing) -> str | None:
    """Return a remark if a spacing for variance-exploding paths is used on a variance-preserving one; else None."""
    if not isinstance(steps, str) or not steps.startswith("karras") or not np.allclose(training.total_std, 1):
        return None
    return problem(
        "is made for variance-exploding paths; on this one samples get another spread (20 steps of "
        "'ancestral' with an exact network: 0.65 for 0.56, evenly spaced ones 0.56); use a number of "
        "steps",
        option="steps",
        value=steps,
    )


def nearest(table: ProcessTable, sigmas: Any) -> tuple[int, ...]:
    """Return the levels nearest to given noise, ascending; usable as ``steps``.

        system.sample(16, steps=diffkit.spacing.nearest(system.table, [14.6, 6.3, 2.7, 1.0, 0.3, 0.0]))

    Nearest in the logarithm of sigma / alpha, cleaner ones first: where two values have the same nearest level, the
    noisier one gets the next free level, so there are as many levels as values.

    Args:
        table: The training table, `System.table`.
        sigmas: Values of sigma / alpha, in any order, at most T; a 0 is level 0 and left out; inf is level T.
    Raises:
        OptionError: A value is negative or not a number, none is above 0, or there are more than levels.
    """
    ratio = _ratios(sigmas)
    if not len(ratio):
        raise OptionError("must hold a value above 0", option="sigmas", value=sigmas)
    _check_count(len(ratio), table.num_steps)
    return _even_grids.nearest(table, -2 * np.log(ratio))


def _ratios(sigmas: Any) -> F64:
    try:
        found = np.asarray(sigmas, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError("must be a list of numbers", option="sigmas", value=sigmas) from error
    if found.ndim != 1 or np.any(np.isnan(found)) or np.any(found < 0):
        raise OptionError("must be a list of numbers >= 0", option="sigmas", value=sigmas)
    return found[found > 0]


def _from_text(num_steps: int, text: str, table: ProcessTable | None) -> tuple[int, ...]:
    if text in ("", "all"):
        return levels(num_steps, None)
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        return _sections(num_steps, [int(count) for count in text.split(",")])
    if is_grid(text):
        return grid(text, _needed(table, text))
    named = re.fullmatch(r"([a-z]+)(\d+)(?::rho=(.+))?", text)
    if named and named[3] and named[1] != "karras":
        raise OptionError(f"spacing {text!r} has no rho; only 'karras{named[2]}:rho={named[3]}' has")
    if named and (named[1] in _NAMED or named[1] in EVEN_GRIDS):
        count = int(named[2])
        _check_count(count, num_steps)
        if count == 1 < num_steps and named[1] in _FROM_LEVEL_1:
            raise OptionError(f"spacing {text!r} is level 1 alone, where no chain can start; use 1 or 'trailing1'")
        if named[3]:
            return karras(_rho(named[3], text))(_needed(table, text), count)
        if named[1] in EVEN_GRIDS:
            return EVEN_GRIDS[named[1]](_needed(table, text), count)
        return _NAMED[named[1]](num_steps, count)
    forms = "'250', '10,15,20', " + ", ".join(f"'{name}50'" for name in (*_NAMED, *EVEN_GRIDS))
    raise OptionError(
        f"spacing {text!r} has no known form; use a number, a list of levels, one of {forms}, a file that ends in "
        f".json, or one of {', '.join(map(repr, GRIDS))}"
    )


def _rho(text: str, spacing: str) -> float:
    """The exponent of a spacing; below 1 most levels would be almost pure noise."""
    try:
        return check_number(f"rho of spacing {spacing!r}", float(text), ge=1)
    except ValueError as error:
        raise OptionError(f"rho of spacing {spacing!r} must be a number >= 1, got {text!r}") from error


def _needed(table: ProcessTable | None, text: str) -> ProcessTable:
    if table is None:
        raise OptionError(f"spacing {text!r} depends on noise levels, so it needs the table")
    return table


def _check_count(count: int, available: int, where: str = "the table") -> None:
    if count < 1:
        raise OptionError("must be >= 1", option="steps", value=count)
    if count > available:
        raise OptionError(f"must be <= {available}, the number of levels of {where}", option="steps", value=count)


def _sections(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Equal sections (the first ones a level longer where T does not divide), each with its count."""
    if counts == [1]:
        return (num_steps,)
    size, extra = divmod(num_steps, len(counts))
    selected: list[int] = []
    start = 1
    for i, count in enumerate(counts):
        length = size + (1 if i < extra else 0)
        _check_count(count, length, "the table" if len(counts) == 1 else f"section {i + 1} of {num_steps} levels")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied, and rounded half to even: improved-diffusion's positions differ from i * stride in the
        # last digit, which moves a level for 310 of the counts up to 1000.
        position = 0.0
        for _ in range(count):
            selected.append(start + round(position))
            position += stride
        start += length
    return tuple(selected)


def _ddim(num_steps: int, count: int) -> tuple[int, ...]:
    for stride in range(1, num_steps + 1):
        selected = range(1, num_steps + 1, stride)
        if len(selected) == count:
            return tuple(selected)
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


_FROM_LEVEL_1 = ("ddim", "leading")
_NAMED: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "ddim": _ddim,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
}
