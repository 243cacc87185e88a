"""Heun's step between two levels, on any path: what both of EDM's samplers share.

In ``x / alpha`` as a function of ``sigma / alpha`` the probability flow has slope eps, the estimated noise. An Euler
step with the slope at t is DDIM's; Heun's method then takes the mean of the slopes at t and at the point reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffkit.protocols import Denoise, Level
from diffkit.table import Coefs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from diffkit.table import F64


def second_order_plan(t: Coefs, s: Coefs) -> dict[str, F64]:
    """Coefficients of the Euler step and of its correction ``correct (eps_s - eps_t)``.

    The correction is 0 where there is no slope to take: at clean data, where eps is 0/0, and at a level without signal,
    where x / alpha is infinite. The step is of first order there.
    """
    keep = s.sigma / t.sigma
    distance = s.sigma - np.divide(s.alpha * t.sigma, t.alpha, out=np.zeros_like(t.alpha), where=t.alpha > 0)
    return {
        "x": keep,
        "x_start": s.alpha - keep * t.alpha,
        "correct": np.where((t.alpha > 0) & (s.sigma > 0), distance / 2, 0.0),
    }


def second_order_step(
    denoise: Denoise, x: Tensor, t: Level, s: Level, coef: Mapping[str, Tensor], last: bool
) -> Tensor:
    """Return x at level s; the network is asked once if it is the last step, else twice."""
    x_start = denoise(x, t).x_start
    euler = (coef["x"] * x).addcmul(coef["x_start"], x_start)
    if last:
        return euler
    eps_t = (x - t.alpha * x_start) / t.sigma
    eps_s = (euler - s.alpha * denoise(euler, s).x_start) / s.sigma
    return euler.addcmul(coef["correct"], eps_s - eps_t)
