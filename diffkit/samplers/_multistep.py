"""Multistep solvers: one evaluation a step, the last few estimates extended as a polynomial.

What a solver extends (x_start or eps), and against which variable, makes the family; see `extension`. A step never
knows its place: the ramp-up while history is short, and the steps where a variable is infinite, are rows of the plan
with a 0 in place of a coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffkit.samplers._coefficients import straight

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.protocols import Denoise, StepRow
    from diffkit.table import F64, Steps

_CLOSEST = 1e-3
"""An estimate this near to the next one (in steps) is left out: divided by it, float32 rounding would outweigh it."""


def places(t: F64, s: F64, count: int) -> F64:
    """Where earlier estimates lie, in steps from t: 0 at t, 1 at s, negative before; (n, count), nan where none.

    Args:
        t, s: The clock at both ends of each step, (n,).
        count: How many earlier estimates.
    """
    out = np.full((len(t), count), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(min(count, len(t) - 1)):
            out[j + 1 :, j] = (t[: -j - 1] - t[j + 1 :]) / (s - t)[j + 1 :]
    out[~np.isfinite(out)] = np.nan
    steps_back = np.diff(out, axis=1, prepend=0.0)
    usable = np.logical_and.accumulate(steps_back < -_CLOSEST, axis=1)  # False where nan
    return np.where(usable, out, np.nan)


def extension(u: F64, moments: F64) -> F64:
    """Coefficients of (estimate_j - estimate_0) that integrate the polynomial through all estimates, (n, J).

    Solves ``sum_j v_j u_j^k = m_k`` for k = 1..J: the estimate at t is kept apart, and rows with fewer usable estimates
    take a polynomial of lower degree.

    Args:
        u: Where the estimates lie, (n, J); nan (which all later ones are too) where there is none.
        moments: ``integral of u^k`` over the step, k = 0..J, (n, J+1).
    """
    out = np.zeros_like(u)
    found = np.isfinite(u).sum(axis=1)
    found = np.where(np.isfinite(moments).all(axis=1), found, 0)
    for count in range(1, u.shape[1] + 1):
        rows = found == count
        if rows.any():
            powers = u[rows, None, :count] ** np.arange(1, count + 1)[None, :, None]
            out[rows, :count] = np.linalg.solve(powers, moments[rows, 1 : count + 1, None])[..., 0]
    return out


def held_slope(u: F64, amount: F64) -> F64:
    """Coefficient of (estimate_1 - estimate_0) where the slope's effect is taken at the middle of the step, (n, 1).

    Half the weight of the estimate itself, where `extension` has the exact integral: equal to leading order.

    Args:
        u: Where the estimate before lies, (n, 1).
        amount: What holding the estimate constant adds, (n,).
    """
    with np.errstate(invalid="ignore"):
        slope = amount[:, None] / (2 * u)
    return np.where(np.isfinite(slope), slope, 0.0)


def data_plan(steps: Steps, change: F64) -> dict[str, F64]:
    """Columns of `data_step`: x, x_start, x_start_1, ... from the coefficients of (x_start_j - x_start), (n, J)."""
    x, x_start = straight(*steps)
    older = {f"x_start_{j + 1}": change[:, j] for j in range(change.shape[1])}
    return {"x": x, "x_start": x_start - change.sum(axis=1)} | older


def start_history(x: Tensor, length: int) -> tuple[Tensor, ...]:
    """A history of nothing; the plan's coefficients of it are 0."""
    return (x.new_zeros(x.shape),) * length


def data_step(
    denoise: Denoise, x: Tensor, history: Sequence[Tensor], row: StepRow
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``x_s = x x_t + x_start D + x_start_1 D_1 + ...``: return it and the new history, latest estimate first."""
    c, estimate = row.coef, denoise(x, row.t).x_start
    y = (c["x"] * x).addcmul(c["x_start"], estimate)
    for j, older in enumerate(history, 1):
        y = y.addcmul(c[f"x_start_{j}"], older)
    return y, (estimate, *history[:-1])
