"""Multistep solvers: one evaluation a step, the last few estimates extrapolated by a polynomial.

Solvers differ in what they extrapolate (x_start or eps) and in the variable; see `polynomial_weights`. All steps run
the same code: in the first steps, while history is short, and where a variable is infinite, the plan has a coefficient
of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffkit.parts.samplers._coefficients import MIN_SPACING, moments, noise_ratio, straight
from diffkit.parts.samplers._stochastic import with_noise

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.protocols import Denoise, StepRow
    from diffkit.table import F64, Steps

_MAX_CORRECTED_STEP = 2.0
"""A first step larger than this (in lambda) is not corrected: a straight line is inaccurate over it, and float32
rounding of eps at the end with less noise would be amplified by exp(h)."""
_MAX_LINEAR_EXTRAPOLATION = 3.0
"""Linear extrapolation reaches at most this many times the distance between its two estimates.

With an exact network and 10 evenly spaced levels, whose last step is 4 times the one before, a line there has 4 times
the error of a constant. Step sizes of practical grids rarely double.
"""
_MAX_POLYNOMIAL_EXTRAPOLATION = 1.0
"""Extrapolation of degree 2 or more reaches at most this many times the length of the interval it was fitted to."""


PUBLISHED_3M = np.array([1.0, 1.0, 0.5])
"""Shares of the integrals of u^k in DPM-Solver++(3M) as its authors' code has it."""


def relative_steps(t: F64, s: F64, count: int, lower_order_long: bool = True, lower_order_final: bool = False) -> F64:
    """Positions of earlier estimates relative to the step: 0 at t, 1 at s, negative before; (n, count), nan if unused.

    Unused where there is none, and where the step is long compared with the range of the estimates, such as the last
    steps of evenly spaced levels: a polynomial is inaccurate that far ahead.

    Args:
        t, s: The solver's variable (log_snr or rho) at both ends of each step, (n,).
        count: Number of earlier estimates.
        lower_order_long: Leave estimates out where the step is long.
        lower_order_final: Use none on the last step, and one on the step before it.
    """
    out = np.full((len(t), count), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(min(count, len(t) - 1)):
            out[j + 1 :, j] = (t[: -j - 1] - t[j + 1 :]) / (s - t)[j + 1 :]
    out[~np.isfinite(out)] = np.nan
    steps_back = np.diff(out, axis=1, prepend=0.0)
    far_enough = -out * np.where(np.arange(count) == 0, _MAX_LINEAR_EXTRAPOLATION, _MAX_POLYNOMIAL_EXTRAPOLATION) >= 1
    known = (steps_back < -MIN_SPACING) & (far_enough | (not lower_order_long))
    usable = np.logical_and.accumulate(known, axis=1)  # False where nan
    found = np.where(usable, out, np.nan)
    return lowered_at_end(found) if lower_order_final else found


def lowered_at_end(u: F64) -> F64:
    """Positions of earlier estimates without any on the last step, and with one on the step before it."""
    out = u.copy()
    out[-1:], out[-2:, 1:] = np.nan, np.nan
    return out


def polynomial_weights(u: F64, moments: F64) -> F64:
    """Coefficients of (estimate_j - estimate_0) that integrate the polynomial through all estimates, (n, J).

    Solves ``sum_j v_j u_j^k = m_k`` for k = 1..J: the estimate at t is handled separately, and rows with fewer usable
    estimates take a polynomial of lower degree.

    Args:
        u: Where the estimates lie, (n, J); nan (which all later ones are too) where there is none.
        moments: ``integral of u^k`` over the step, k = 0..J, (n, J+1).
    """
    out = np.zeros_like(u)
    found = np.isfinite(u).sum(axis=1)
    for count in range(1, u.shape[1] + 1):
        rows = found == count
        if rows.any():
            powers = u[rows, None, :count] ** np.arange(1, count + 1)[None, :, None]
            out[rows, :count] = np.linalg.solve(powers, moments[rows, 1 : count + 1, None])[..., 0]
    return out


def midpoint_slope(u: F64, amount: F64) -> F64:
    """Coefficient of (estimate_1 - estimate_0) where the slope's effect is taken at the middle of the step, (n, 1).

    Half the weight of the estimate itself, where `polynomial_weights` has the exact integral: equal to leading order.

    Args:
        u: Where the estimate before lies, (n, 1).
        amount: Contribution of a constant estimate, (n,).
    """
    with np.errstate(invalid="ignore"):
        slope = amount[:, None] / (2 * u)
    return np.where(np.isfinite(slope), slope, 0.0)


def line_weights(solver: str, u: F64, amount: F64, h: F64, scale: F64) -> F64:
    """Coefficient of (estimate_1 - estimate_0) by the middle of the step ("midpoint"), or exact ("heun"), (n, 1).

    Args:
        solver, u, amount: See `midpoint_slope`.
        h: Step sizes of the integral, (n,).
        scale: What a step of infinite size gives a constant estimate, alpha_s, (n,).
    """
    if solver == "midpoint":
        return midpoint_slope(u, amount)
    return polynomial_weights(u, scale[:, None] * moments(h, 2))


def startup_correction(change: F64, u: F64, h: F64, moments: F64, carry: F64) -> F64:
    """Return ``change`` with a correction of the first-order starting steps, applied one step later.

    A step of order 1 leaves an error of h^2, which would remain and limit solvers of higher order. With the estimate at
    its end, which the next step evaluates anyway, it becomes the integral of a straight line.

    Args:
        change: Coefficients of (estimate_j - estimate_0), (n, J).
        u: Where the earlier estimates lie, (n, J).
        h: Step sizes in lambda, (n,).
        moments: As in `polynomial_weights`, (n, J+1).
        carry: What a change of x_t changes in x_s, (n,).
    """
    out = change.copy()
    held = ~np.isfinite(u[:-1, 0]) & (np.abs(h[:-1]) < _MAX_CORRECTED_STEP)
    out[1:, 0] -= np.where(held, carry[1:] * np.where(held, moments[:-1, 1], 0.0), 0.0)
    return out


def data_plan(steps: Steps, change: F64) -> dict[str, F64]:
    """Columns of `data_step`: x, x_start, x_start_1, ... from the coefficients of (x_start_j - x_start), (n, J)."""
    x, x_start = straight(*steps)
    older = {f"x_start_{j + 1}": change[:, j] for j in range(change.shape[1])}
    return {"x": x, "x_start": x_start - change.sum(axis=1)} | older


def start_history(x: Tensor, length: int) -> tuple[Tensor, ...]:
    """A history of nothing; the plan's coefficients of it are 0."""
    return tuple(
        x.new_zeros(x.shape) for _ in range(length)
    )  # separate tensors: compiled graphs treat aliases as another case


def data_step(
    denoise: Denoise,
    x: Tensor,
    history: Sequence[Tensor],
    row: StepRow,
    noise: Tensor | None = None,
    variance: str = "analytic",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``x_s = x x_t + x_start D + x_start_1 D_1 + ... + noise``: return it and the new history, latest estimate first.

    Args:
        denoise, x, row, noise: As in `Sampler.step`.
        history: Earlier estimates of x_start, latest first.
        variance: Whose variance the noise has; see `diffkit.parts.samplers._stochastic`.
    """
    c, prediction = row.coef, denoise(x, row.t)
    y = (c["x"] * x).addcmul_(c["x_start"], prediction.x_start)
    for j, older in enumerate(history, 1):
        y = y.addcmul_(c[f"x_start_{j}"], older)
    return with_noise(y, c, noise, variance, prediction), (prediction.x_start, *history)[: len(history)]


def noise_plan(steps: Steps, change: F64) -> dict[str, F64]:
    """Columns of `noise_step`: x, x_start, eps_1, ... from the coefficients of (eps_j - eps), (n, J).

    eps itself is a combination of x_t and x_start, and only the history needs it: ``eps_x x_t + eps_x_start D``.
    """
    x, x_start = straight(*steps)
    eps_x, eps_x_start = 1 / steps.t.sigma, -steps.t.alpha / steps.t.sigma
    own = -change.sum(axis=1)
    older = {f"eps_{j + 1}": change[:, j] for j in range(change.shape[1])}
    columns = {"x": x + own * eps_x, "x_start": x_start + own * eps_x_start, "eps_x": eps_x, "eps_x_start": eps_x_start}
    return columns | older


def noise_step(
    denoise: Denoise, x: Tensor, history: Sequence[Tensor], row: StepRow
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same as `data_step` with a history of eps in place of x_start."""
    c, estimate = row.coef, denoise(x, row.t).x_start
    y = (c["x"] * x).addcmul_(c["x_start"], estimate)
    for j, older in enumerate(history, 1):
        y = y.addcmul_(c[f"eps_{j}"], older)
    eps = (c["eps_x"] * x).addcmul_(c["eps_x_start"], estimate)
    return y, (eps, *history)[: len(history)]


def noise_carry(steps: Steps) -> F64:
    """What a change of x_t changes in x_s while every eps stays, alpha_s / alpha_t; 0 from a level without signal."""
    t, s = steps
    carry: F64 = np.divide(s.alpha, t.alpha, out=np.zeros_like(t.alpha), where=t.alpha > 0)
    return carry


def noise_slopes(steps: Steps, weights: F64) -> F64:
    """``alpha_s (rho_s - rho_t) weights``, (n, J): what weights of (eps_j - eps) add; 0 from a level without signal."""
    t, s = steps
    with np.errstate(invalid="ignore"):
        amount = s.alpha * (noise_ratio(s) - noise_ratio(t))
    return np.where(np.isfinite(amount), amount, 0.0)[:, None] * weights
