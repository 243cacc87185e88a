"""SA-Solver: stochastic Adams methods, a predictor with fresh noise, corrected by the next estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import flag, integer, number
from diffkit.parts.samplers._coefficients import moments, noise_ratio, step_size
from diffkit.parts.samplers._multistep import (
    data_step,
    folded_correction,
    midpoint_slope,
    mixed_weights,
    relative_steps,
    start_history,
)
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps

_LONG = 2.0
"""From this H on a step with noise takes a line at its middle, and is not corrected; see 'sde_dpmpp_3m'."""


@registry("sampler").register("sa_solver")
@frozen
class SASolver(Sampler):
    """``x_s = sigma_s/sigma_t exp(-tau^2 h) x_t + integral of P + std noise``, P a polynomial through x_start.

    ``integral = alpha_s integral over 0..1 of H exp(-H (1 - u)) P(u) du``, ``H = (1 + tau^2) h``
    ``std = sigma_s sqrt(1 - exp(-2 tau^2 h))``, h = lambda_s - lambda_t
    P goes through x_start at t and at levels before (the predictor), then at s as well, with the same noise (the
    corrector). As in 'unipc' the corrector uses the estimate that the next step starts with, and costs no evaluation.

    Attributes:
        estimates: Number of the last estimates that the predictor uses, 1 to 3; the corrector has one more.
        tau: Stochasticity, >= 0, where s_tmin <= sigma_t / alpha_t <= s_tmax, else 0; 1 is the reverse SDE.
        s_tmin, s_tmax: Range of sigma / alpha in which noise is added, >= 0.
        corrected: Use the corrector.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1, with tau constant within steps.
    Deviates: as 'unipc' and 'sde_dpmpp_3m' do on long steps; a single difference weighs what it has at the middle of
    the step, so that without noise this is 'unipc'. Of order 2 at most with noise, as noise drawn between two estimates
    is in no polynomial.
    """

    estimates: int = integer(3, ge=1, le=3)
    tau: float = number(1.0, ge=0)
    s_tmin: float = number(0.05, ge=0)
    s_tmax: float = number(1.0, ge=0)
    corrected: bool = flag(True)
    lower_order_long: bool = flag(True)

    @property
    def order(self) -> int:
        """The number of estimates, one more if corrected, at most 3; at most 2 with noise or without correction."""
        most = 3 if self.corrected and not self.stochastic else 2
        return min(self.estimates + (1 if self.corrected else 0), most)

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.tau > 0

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, x_start, the estimates before and any noise."""
        t, s = steps
        h, rho = step_size(steps), noise_ratio(t)
        rate = np.where((rho >= self.s_tmin) & (rho <= self.s_tmax), self.tau**2, 0.0)
        drift = np.multiply(rate, h, out=np.zeros_like(h), where=rate > 0)
        carry = s.sigma / t.sigma * np.exp(-drift)
        held = s.alpha - carry * t.alpha
        u = relative_steps(t.log_snr, s.log_snr, self.estimates, self.lower_order_long)
        length = (1 + rate) * h
        integrals = s.alpha[:, None] * moments(length, self.estimates + 1)
        predictor = mixed_weights(u[:, :-1], integrals[:, :-1], held)
        corrector = mixed_weights(np.concatenate([np.ones_like(h)[:, None], u[:, :-1]], axis=1), integrals, held)
        usable = np.isfinite(h) & self.corrected
        if self.lower_order_long:
            long = (np.abs(length) >= _LONG) & (rate > 0)
            line = np.zeros_like(predictor)
            line[:, :1] = midpoint_slope(u[:, :1], held)[:, : predictor.shape[1]]
            predictor = np.where(long[:, None], line, predictor)
            usable &= ~long
        corrector = np.where(usable[:, None], corrector, np.pad(predictor, ((0, 0), (1, 0))))
        older = folded_correction(predictor, corrector, carry, u)
        plan = {"x": carry, "x_start": held - older.sum(axis=1)}
        plan |= {f"x_start_{j + 1}": older[:, j] for j in range(self.estimates)}
        return plan | ({"noise": s.sigma * np.sqrt(-np.expm1(-2 * drift))} if self.stochastic else {})

    def init(self, x: Tensor) -> State:
        """Return a history, unused on the first step."""
        return start_history(x, self.estimates)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row, noise)
