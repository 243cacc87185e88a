"""Laws of spacings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffkit.errors import OptionError
from diffkit.protocols import GridSpacing, LevelSpacing
from diffkit.table import F64, ProcessTable, interpolate
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close
from diffkit.testing._paths import WHOLE, WITHOUT_SIGNAL

_STEPS = (1, 2, 3, 20, 100, 1000)


def _tables() -> Iterator[tuple[ProcessTable, Where]]:
    for path in (*WHOLE, *WITHOUT_SIGNAL):
        for num_steps in _STEPS:
            yield path.table(num_steps), record_where(Where(path.label, num_steps))


def _levels(part: LevelSpacing, table: ProcessTable) -> list[int] | None:
    """The levels, or None for a table that it refuses."""
    try:
        return [*part.levels(table)]
    except OptionError:
        return None


@check("spacing")
def levels_of_the_table(part: LevelSpacing) -> None:
    """It returns integers in 1..T, ascending, none twice, or raises OptionError where it cannot.

    Usually: floats, a level 0, or two that round to one.
    """
    accepted = 0
    for table, where in _tables():
        found = _levels(part, table)
        if found is None:
            continue
        accepted += 1
        whole = all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in found)
        require(bool(found) and whole, "one integer or more", found, where)
        inside = found[0] >= 1 and found[-1] <= table.num_steps
        require(inside and all(np.diff(found) > 0), f"ascending levels in 1..{table.num_steps}", found, where)
    require(accepted > 0, "levels of some table", f"an OptionError for every T of {_STEPS}")


@check("spacing")
def same_table_same_levels(part: LevelSpacing) -> None:
    """The same table gives the same levels, whatever was done in between.

    Usually: randomness, or a cache that forgets which table it is for.
    """
    tables = [table for table, _ in _tables()]
    first = [_levels(part, table) for table in tables]
    again = [_levels(part, table) for table in reversed(tables)][::-1]
    require(first == again, "the same levels again", "others")


@check("spacing")
def count_as_given(part: LevelSpacing) -> None:
    """A spacing with an option `count` returns that many levels of a table that has fifty times as many.

    Usually: both ends counted, or one of them left out.
    """
    count = getattr(part, "count", None)
    if not isinstance(count, int):
        raise NotApplicableError("it has no option 'count'")
    for path in WHOLE:
        found = _levels(part, path.table(50 * count))
        where = Where(path.label, 50 * count)
        require(found is None or len(found) == count, f"{count} levels", found if found is None else len(found), where)


@check("spacing")
def noise_as_declared(part: LevelSpacing) -> None:
    """With uses_noise = False the levels depend on T alone.

    Usually: the declaration is left out where noise levels are not used, or the other way round.
    """
    if part.uses_noise:
        raise NotApplicableError("it declares that it uses noise levels")
    for num_steps in _STEPS:
        found = {str(_levels(part, path.table(num_steps))) for path in WHOLE}
        require(len(found) == 1, "the same levels on every path", sorted(found), Where("", num_steps))


def _noise(part: GridSpacing, table: ProcessTable) -> F64 | None:
    """Its log_snr, or None for a table that it refuses."""
    try:
        return np.asarray(part.log_snr(table), dtype=np.float64)
    except OptionError:
        return None


@check("spacing")
def noise_between_levels(part: LevelSpacing) -> None:
    """Noise levels of a `GridSpacing` descend in log_snr, the same at every call, and make a chain of the table.

    Usually: noisiest first, as samplers visit them, or sigma in place of log_snr.
    """
    if not isinstance(part, GridSpacing):
        raise NotApplicableError("it visits levels of the table")
    accepted = 0
    for table, where in _tables():
        found = _noise(part, table) if table.num_steps > 2 else None  # with two levels of signal or more
        if found is None:
            continue
        require(found.ndim == 1 and bool(np.all(np.diff(found) < 0)), "descending log_snr, (n,)", found, where)
        again = _noise(part, table)
        require(again is not None and np.array_equal(found, again), "the same noise levels again", again, where)
        try:
            chain = interpolate(table, found, part.time(table))
        except OptionError:  # noise that this table does not reach
            continue
        accepted += 1
        finite = np.isfinite(found)
        require_close(chain.log_snr[1:][finite], found[finite], 1e-9, "log_snr of the chain", where)
    require(accepted > 0, "noise levels of some table", f"none for every T of {_STEPS}")
