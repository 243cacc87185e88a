"""The best levels for a number of steps, by dynamic programming over the costs of steps from one measurement.

    bound = system.bits_per_dim(data)                                     # once, every level
    steps = optimal_levels(system.table, bound.x_start_mse.mean(0), 25)
    system.sample(16, steps=steps);  system.bits_per_dim(data, steps=steps)

A step from level t to any cleaner level s costs the variational bound a KL that depends on the model only through its
squared error of x_start at t. With e that error per dimension, and everything in nats per dimension:

    variance of the posterior:  KL = (snr_s - snr_t) e / 2
    best variance:              KL = log(1 + (snr_s - snr_t) e) / 2
    upper variance:             v = upper / posterior,  KL = (1 / v - 1 + log(v) + (snr_s - snr_t) e / v) / 2

So one number for each level determines the costs of all T^2 / 2 steps, and the cheapest chain of K levels is a shortest
path. Levels 1 and T are always in it: the decoder's term belongs to level 1, and sampling starts from level T.

Source: Watson et al. 2021, arXiv:2106.03802, algorithms 1 and 2; best variance: Bao et al. 2022, arXiv:2201.06503,
theorem 1 and section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.table import F64, ProcessTable, check_levels

VARIANCES = ("best", "posterior", "upper")
_ROWS = 256
"""Levels whose costs are computed at a time, which bounds memory at T = 4000 to a few megabytes."""


def optimal_levels(table: ProcessTable, x_start_mse: Any, count: int, *, variance: str = "best") -> tuple[int, ...]:
    """Return the levels of the chain with the lowest bound, ascending; usable as ``steps``.

    Args:
        table: The table, T levels.
        x_start_mse: Mean squared error of x_start at levels 1..T, per dimension, (T,); see `Bound.x_start_mse`.
        count: Number of levels, 1..T.
        variance: Of the reverse step: "best" (var='analytic'; near to a learned one), "posterior" (fixed_small) or
            "upper" (fixed_large).
    Raises:
        OptionError: An argument is wrong.
    """
    error = _errors(x_start_mse, table)
    count = check_integer("count", count, ge=1, le=table.num_steps)
    _check_variance(variance)
    if count <= 2:
        return (table.num_steps,) if count == 1 else (1, table.num_steps)
    return tuple(int(k) for k in _shortest(table, error, count, variance))


def chain_bits(table: ProcessTable, x_start_mse: Any, levels: Sequence[int], *, variance: str = "best") -> float:
    """Return the part of the bound due to the steps between a chain's levels, bits per dimension.

    The rest of the bound, the decoder's term at level 1 and the prior's at T, is the same for all chains with both.

    Args:
        table, x_start_mse, variance: As in `optimal_levels`.
        levels: Levels of the chain, ascending.
    """
    error = _errors(x_start_mse, table)
    _check_variance(variance)
    chain = check_levels(levels, table.num_steps)
    nats = _step_nats(table, error, chain[1:], chain[:-1], variance)
    return float(nats.sum() / np.log(2))


def _step_nats(table: ProcessTable, error: F64, t: Any, s: Any, variance: str) -> F64:
    """KL of steps from levels t to levels s, which broadcast; nats per dimension. Meaningless where s >= t."""
    snr = np.exp(table.log_snr[1:])
    gained = (snr[s - 1] - snr[t - 1]) * error[t - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if variance == "posterior":
            return np.asarray(gained / 2)
        if variance == "best":
            return np.asarray(np.log1p(gained) / 2)
        # beta / posterior variance, from level s to t: (noise share at t) / (noise share at s)
        ratio = table.one_minus_alpha_bar[t] / table.one_minus_alpha_bar[s]
        return np.asarray((1 / ratio - 1 + np.log(ratio) + gained / ratio) / 2)


def _shortest(table: ProcessTable, error: F64, count: int, variance: str) -> list[int]:
    """The cheapest path of ``count`` levels from 1 to T."""
    steps = table.num_steps
    level = np.arange(1, steps + 1)
    cost = np.where(level == 1, 0.0, np.inf)  # of the best path of k levels from level 1 to each level
    before: list[np.ndarray] = []
    for _ in range(count - 1):
        found, origin = np.full(steps, np.inf), np.zeros(steps, dtype=np.int64)
        for first in range(0, steps, _ROWS):
            t = level[first : first + _ROWS]
            nats = _step_nats(table, error, t[:, None], level[None, :], variance)
            total = np.where(level[None, :] < t[:, None], cost[None, :] + nats, np.inf)
            origin[t - 1] = np.argmin(total, axis=1)
            found[t - 1] = np.min(total, axis=1)
        cost = found
        before.append(origin)
    path = [steps - 1]
    for origin in reversed(before):
        path.append(int(origin[path[-1]]))
    return [k + 1 for k in reversed(path)]


def _errors(x_start_mse: Any, table: ProcessTable) -> F64:
    error = np.asarray(x_start_mse, dtype=np.float64)
    if error.shape != (table.num_steps,):
        raise OptionError(
            f"x_start_mse must have one value for each of the table's {table.num_steps} levels, got shape {error.shape}"
        )
    if not np.all(np.isfinite(error)) or np.any(error < 0):
        raise OptionError("x_start_mse must be finite and >= 0 at every level; measure it with steps=None")
    return error


def _check_variance(variance: str) -> None:
    if variance not in VARIANCES:
        raise OptionError(f"must be one of {', '.join(map(repr, VARIANCES))}", option="variance", value=variance)
