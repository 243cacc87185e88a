"""Levels that are evenly spaced in some measure of noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffkit.table import F64, ProcessTable

RHO = 7.0
"""Exponent of the Karras spacing: Karras et al. 2022, arXiv:2206.00364, eq. 5."""


def nearest(table: ProcessTable, log_snr: F64) -> tuple[int, ...]:
    """Return the levels nearest to given log_snr, each level at most once, ascending.

    Args:
        table: The table.
        log_snr: At most T values, in any order; -inf is level T.
    """
    targets = np.sort(np.asarray(log_snr, dtype=np.float64))[::-1]
    known = np.where(np.isfinite(table.log_snr[1:]), table.log_snr[1:], np.finfo(np.float64).min)
    found = [table.num_steps if np.isneginf(w) else 1 + int(np.argmin(np.abs(known - w))) for w in targets]
    return distinct(found, table.num_steps)


def distinct(levels: list[int], num_steps: int) -> tuple[int, ...]:
    """Return the same number of distinct levels, each moved up and then down as little as possible."""
    out = list(levels)
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + 1)
    limit = num_steps
    for i in reversed(range(len(out))):
        out[i] = min(out[i], limit)
        limit = out[i] - 1
    return tuple(out)


def _even(measure: Callable[[ProcessTable], F64]) -> Callable[[ProcessTable, int], tuple[int, ...]]:
    """A spacing that is even in a monotonic measure of the level, from level 1 to T."""

    def spacing(table: ProcessTable, count: int) -> tuple[int, ...]:
        if count == 1:
            return (table.num_steps,)
        values = measure(table)[1:]
        faint = not np.isfinite(values[-1])  # no signal at T: level T is included, and the others are even below it
        inner = values[:-1] if faint else values
        if count - faint <= 1 or len(inner) < 2:
            return distinct([1, *[table.num_steps] * (count - 1)], table.num_steps)
        targets = np.linspace(inner[0], inner[-1], count - faint)
        found = [1 + int(np.argmin(np.abs(inner - w))) for w in targets]
        return distinct(found + [table.num_steps] * faint, table.num_steps)

    return spacing


def _noise_ratio(table: ProcessTable) -> F64:
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(np.exp(-table.log_snr / 2))


def karras(rho: float) -> Callable[[ProcessTable, int], tuple[int, ...]]:
    """The spacing that is even in (sigma / alpha)^(1/rho): the larger rho, the denser at clean levels."""
    return _even(lambda table: _noise_ratio(table) ** (1 / rho))


EVEN_GRIDS: dict[str, Callable[[ProcessTable, int], tuple[int, ...]]] = {
    "quad": _even(lambda table: np.sqrt(np.arange(table.num_steps + 1))),
    "time": _even(lambda table: table.time),
    "logsnr": _even(lambda table: table.log_snr),
    "karras": karras(RHO),
}
"""Name -> function of (table, count) that gives levels."""
