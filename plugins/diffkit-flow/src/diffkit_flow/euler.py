"""Euler's method along the estimated velocity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Denoise, Sampler, State, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class FlowEuler(Sampler):
    """``x_s = x_t + (alpha_s - alpha_t) x_start + (sigma_s - sigma_t) eps``, one evaluation a step.

    On the straight path that is ``x_t + (u_s - u_t) v``. It is never asked for eps by itself, so it ends at x_start.
    Source: Liu et al. 2022, arXiv:2209.03003, section 2.2.
    Deviates: written for any path, where it moves along the chord in (alpha, sigma).
    """

    order: ClassVar[int] = 1

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t and x_start, eps = (x_t - alpha_t x_start) / sigma_t being put in."""
        t, s = steps
        move = (s.sigma - t.sigma) / t.sigma
        return {"x": 1 + move, "x_start": s.alpha - t.alpha - move * t.alpha}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        coef = row.coef
        return (coef["x"] * x).addcmul(coef["x_start"], denoise(x, row.t).x_start), state
