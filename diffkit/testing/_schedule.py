"""Laws of noise schedules."""

from __future__ import annotations

import re

import numpy as np
import torch

from diffkit.errors import OptionError
from diffkit.protocols import ContinuousSchedule, NoiseSchedule
from diffkit.table import ProcessTable
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._host import on_fake_tensors

STEPS = (1, 2, 3, 20, 1000)


def _tables(schedule: NoiseSchedule) -> dict[int, ProcessTable]:
    """Return a schedule's tables at the usual numbers of steps, without those it refuses."""
    found = {}
    for num_steps in STEPS:
        record_where(Where(num_steps=num_steps))
        try:
            found[num_steps] = schedule.table(num_steps)
        except OptionError:
            continue
    require(bool(found), f"a table at one of T = {STEPS}", "OptionError at each")
    return found


@check("schedule")
def table_at_any_length(schedule: NoiseSchedule) -> None:
    """At T = 1, 2, 3, 20 and 1000 a schedule has a table of levels 0..T, or an OptionError names the smallest T.

    Usually: a formula with a division by T - 1, or betas above 1 at small T.
    """
    for num_steps in STEPS:
        where = record_where(Where(num_steps=num_steps))
        try:
            table = schedule.table(num_steps)
        except OptionError as error:
            _require_smallest(schedule, num_steps, str(error))
            continue
        require(isinstance(table, ProcessTable), "a ProcessTable", type(table).__name__, where)
        require(table.num_steps == num_steps, f"T = {num_steps}", f"T = {table.num_steps}", where)


def _require_smallest(schedule: NoiseSchedule, refused: int, text: str) -> None:
    """Require that the number in a schedule's message is the smallest T that works."""
    where = Where(num_steps=refused)
    named = [int(n) for n in re.findall(r"\d+", text) if int(n) > refused]
    works = [n for n in named if _has_table(schedule, n) and not _has_table(schedule, n - 1)]
    require(bool(works), "a message that names the smallest num_steps that works", repr(text), where)


def _has_table(schedule: NoiseSchedule, num_steps: int) -> bool:
    try:
        schedule.table(num_steps)
    except OptionError:
        return False
    return True


@check("schedule")
def arrays_are_float64(schedule: NoiseSchedule) -> None:
    """Every array of a schedule's table is float64 (the index int64) and read-only.

    Usually: a table made by calling the class, not one of its from_... constructors; float32 from torch.
    """
    for num_steps, table in _tables(schedule).items():
        for name in ("alpha_bar", "one_minus_alpha_bar", "beta", "total_std", "time", "index"):
            values, where = getattr(table, name), Where(num_steps=num_steps, detail=name)
            expected = np.int64 if name == "index" else np.float64
            require(values.dtype == expected, np.dtype(expected).name, values.dtype, where)
            require(values.shape == (num_steps + 1,), f"shape ({num_steps + 1},)", values.shape, where)
            require(not values.flags.writeable, "a read-only array", "a writable one", where)


@check("schedule")
def level_0_is_clean(schedule: NoiseSchedule) -> None:
    """Level 0 of a schedule's table is the data itself: alpha 1, sigma 0, to the bit.

    Usually: a formula evaluated at level 0 too, with an offset that leaves a little noise there.
    """
    for num_steps, table in _tables(schedule).items():
        for name, expected in (("alpha", 1.0), ("sigma", 0.0), ("one_minus_alpha_bar", 0.0), ("beta", 0.0)):
            value = float(getattr(table, name)[0])
            require(value == expected, f"{name} {expected:g}", repr(value), Where(num_steps=num_steps, level=0))


@check("schedule")
def noise_grows(schedule: NoiseSchedule) -> None:
    """From level to level of a schedule's table signal falls and noise grows.

    Usually: levels in the wrong order, or alpha where alpha_bar (its square) belongs.
    """
    for num_steps, table in _tables(schedule).items():
        rises = np.flatnonzero(np.diff(table.log_snr[1:]) > 0) + 2
        where = Where(num_steps=num_steps, level=int(rises[0]) if rises.size else None)
        require(rises.size == 0, "a log_snr that never rises", "one that does", where)


@check("schedule")
def ends_in_noise(schedule: NoiseSchedule) -> None:
    """At any T above 1 the last level of a schedule has more noise than signal, as sampling starts from pure noise.

    One level alone may stand for the middle of the chain.
    Usually: a variance for each step (beta) that does not grow as steps get fewer, so that a short chain adds less
    noise in all; scale it by 1000 / T, or refuse short chains by OptionError.
    """
    for num_steps, table in _tables(schedule).items():
        if num_steps > 1:
            last, where = float(table.log_snr[-1]), Where(num_steps=num_steps, level=num_steps)
            found = f"{last:.4g} (alpha_bar {float(table.alpha_bar[-1]):.3g})"
            require(last < 0, "log_snr < 0, more noise than signal", found, where)


@check("schedule")
def columns_agree(schedule: NoiseSchedule) -> None:
    """The arrays of a schedule's table are consistent: noise share, beta and index follow from alpha_bar.

    Usually: a table made by calling the class with arrays of one's own.
    """
    for num_steps, table in _tables(schedule).items():
        where = Where(num_steps=num_steps)
        beta = 1 - table.alpha_bar[1:] / table.alpha_bar[:-1]
        require_close(table.one_minus_alpha_bar, 1 - table.alpha_bar, 1e-12, "1 - alpha_bar", where, level_of=int)
        require_close(table.beta[1:], beta, 1e-10, "beta", where, level_of=lambda i: i + 1)
        require_same(table.index, np.arange(num_steps + 1), "the index of an un-respaced table, 0..T", where)


@check("schedule")
def time_tells_levels_apart(schedule: NoiseSchedule) -> None:
    """A schedule's times differ between levels of different noise, and rise or fall throughout.

    Usually: a time that is rounded, clamped or normalized until neighbours coincide.
    """
    for num_steps, table in _tables(schedule).items():
        moved = np.diff(table.time[1:])[np.diff(table.log_snr[1:]) != 0]
        one_way = bool(np.all(moved > 0) or np.all(moved < 0))
        require(
            one_way, "times that rise (or fall) from level to level", "repeats or turns", Where(num_steps=num_steps)
        )


@check("schedule")
def same_call_same_table(schedule: NoiseSchedule) -> None:
    """A schedule gives the same table to the bit for the same call, whatever was called in between.

    Usually: something cached or counted on the class or in the module.
    """
    first = _tables(schedule)
    for num_steps, table in reversed(_tables(schedule).items()):
        for name in ("alpha_bar", "one_minus_alpha_bar", "beta", "total_std", "time"):
            where = Where(num_steps=num_steps, detail=name)
            require_same(getattr(table, name), getattr(first[num_steps], name), "the same table again", where)


@check("schedule")
def level_agrees_with_table(schedule: NoiseSchedule) -> None:
    """A continuous schedule's level(log_snr) gives the total_std and time that its table has there.

    Usually: one formula written twice, with separate constants.
    """
    schedule = _continuous(schedule)
    for num_steps, table in _tables(schedule).items():
        known = np.isfinite(table.log_snr)
        if not known.any():  # one level, and that without signal
            continue
        total_std, time = schedule.level(torch.from_numpy(table.log_snr[known].copy()))
        first = int(np.flatnonzero(known)[0])
        for name, values, column in (("total_std", total_std, table.total_std), ("time", time, table.time)):
            where = Where(num_steps=num_steps, detail=name)
            shape = tuple(values.shape)
            require(shape == (int(known.sum()),), f"{name} of log_snr's shape", shape, where)
            require(values.dtype == torch.float64, f"{name} of log_snr's dtype, float64", values.dtype, where)
            require_close(values, column[known], 1e-9, name, where, level_of=first.__add__)


@check("schedule")
def level_is_elementwise(schedule: NoiseSchedule) -> None:
    """A continuous schedule's level() is elementwise, does not change its argument and reads no value.

    Usually: a normalization over the batch, an operation ending in "_", or .item().
    """
    schedule = _continuous(schedule)
    log_snr = torch.linspace(-6, 6, 7, dtype=torch.float64)
    before = log_snr.clone()
    together = schedule.level(log_snr)
    require_same(log_snr, before, "the argument unchanged", cause="an operation ending in '_'")
    for i in range(len(log_snr)):
        alone = schedule.level(log_snr[i : i + 1])
        for name, a, b in zip(("total_std", "time"), alone, together, strict=True):
            require_close(a, b[i : i + 1], 1e-12, name, Where(detail=f"log_snr {float(log_snr[i]):g} alone"))
    with on_fake_tensors():
        schedule.level(torch.zeros(3, dtype=torch.float64))


def _continuous(schedule: NoiseSchedule) -> ContinuousSchedule:
    if not isinstance(schedule, ContinuousSchedule):
        raise NotApplicableError("its levels are discrete")
    return schedule
