"""Heun's method along the estimated velocity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Denoise, MultistageSampler, State, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class FlowHeun(MultistageSampler):
    """``x_s = x_t + (u_s - u_t) (v_t + v_s) / 2``, v_s at the point that Euler's step with v_t reaches.

    Two evaluations a step, one on the last, which is Euler's. The built-in 'heun' takes the mean of eps in its place,
    in sigma / alpha, and so is of order 1 from a level without signal.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1; Esser et al. 2024, arXiv:2403.03206, for straight paths.
    Deviates: written for any path, where both slopes are along the chord in (alpha, sigma).
    """

    order: ClassVar[int] = 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return Euler's coefficients of x_t and x_start, and half of the change of alpha and of sigma."""
        t, s = steps
        move = (s.sigma - t.sigma) / t.sigma
        alpha, sigma = s.alpha - t.alpha, s.sigma - t.sigma
        return {"x": 1 + move, "x_start": alpha - move * t.alpha, "alpha": alpha / 2, "sigma": sigma / 2}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        c, t, x_start = row.coef, row.t, denoise(x, row.t).x_start
        y = (c["x"] * x).addcmul(c["x_start"], x_start)
        if last:
            return y, state
        s, x_start_s = row.s, denoise(y, row.s).x_start
        eps_change = (y - s.alpha * x_start_s) / s.sigma - (x - t.alpha * x_start) / t.sigma
        return y.addcmul(c["alpha"], x_start_s - x_start).addcmul(c["sigma"], eps_change), state
