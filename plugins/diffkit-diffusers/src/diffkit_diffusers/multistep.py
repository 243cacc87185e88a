"""diffusers' multistep DPM-Solvers, with the orders and weights of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer, number
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit_diffusers._ends import ended
from diffkit_diffusers._exponential import moment

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Coefs, Steps

FEW = 15
"""``lower_order_final`` acts on chains of fewer steps than these."""


@frozen
class DiffusersMultistep(Sampler):
    """Multistep DPM-Solver in x_start or eps, deterministic or with noise.

    ``x_s = carry x_t + size (m_0 D + m_1 D' + m_2 D'' / 2)``, D the latest estimate, D' and D'' its differences by the
    two before, in steps; m_k is the integral of ``H exp(-H (1 - u)) u^k`` over the step, ``h = lambda_s - lambda_t``.
    In x_start: size alpha_s, carry sigma_s / sigma_t and H = h, with noise sigma_s exp(-h) / sigma_t and 2 h; in eps:
    size sigma_s, carry alpha_s / alpha_t and H = -h.

    The built-in 'dpmpp_2m', 'sde_dpmpp_2m' and 'ddim' are the same numbers where those have no further options.

    Attributes:
        algorithm_type: "dpmsolver++" extends x_start, "dpmsolver" eps; "sde-dpmsolver++" is the former with noise.
            "deis" is "dpmsolver" with the integral at every order, m_2 for m_2 / 2.
        solver_order: Number of estimates, 1 to 3; at most 2 with noise.
        solver_type: "midpoint" takes m_0 / 2 for m_1 at order 2, "heun" the integral.
        lower_order_final: The last step is of order 1 and the one before of order 2, in chains of fewer than 15 steps.
        euler_at_final: The last step is of order 1. So it always is if it ends at clean data.
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1].
    Source: Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095, and Zhang & Chen 2022, arXiv:2204.13902 (deis), as in
        diffusers' DPMSolverMultistepScheduler and DEISMultistepScheduler.
    Deviates: from the integral at order 3, in which D'' has the weight m_2; 'dpmpp_3m' has it.
    """

    algorithm_type: str = choice("dpmsolver++", ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis"))
    solver_order: int = integer(2, ge=1, le=3)
    solver_type: str = choice("midpoint", ("midpoint", "heun"))
    lower_order_final: bool = flag(True)
    euler_at_final: bool = flag(False)
    final_alpha_bar: float = number(1.0, gt=0, le=1)

    @property
    def order(self) -> int:
        """As the solver's, at most 2: see the weights of order 3."""
        return min(self.solver_order, 2)

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.algorithm_type == "sde-dpmsolver++"

    @property
    def in_noise(self) -> bool:
        """True if eps is extended, not x_start."""
        return self.algorithm_type in ("dpmsolver", "deis")

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of the estimates, latest first, of the noise, and of the latest estimate itself."""
        steps = ended(steps, self.final_alpha_bar)
        t, s = steps
        with np.errstate(invalid="ignore"):
            h = (s.log_snr - t.log_snr) / 2
        rows = [self._row(i, order, h, t, s) for i, order in enumerate(self._orders(h))]
        plan = dict(zip(("x", "x_start", "new", "old_1", "old_2"), np.array(rows).T, strict=True))
        plan["out_x"] = 1 / t.sigma if self.in_noise else np.zeros_like(h)
        plan["out_x_start"] = -t.alpha / t.sigma if self.in_noise else np.ones_like(h)
        return plan | ({"noise": s.sigma * np.sqrt(-np.expm1(-2 * h))} if self.stochastic else {})

    def init(self, x: Tensor) -> State:
        """Return a history of two estimates, unused in the first step."""
        return x.new_zeros(x.shape), x.new_zeros(x.shape)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        c, estimate = row.coef, denoise(x, row.t).x_start
        latest = (c["out_x"] * x).addcmul_(c["out_x_start"], estimate)
        y = (c["x"] * x).addcmul_(c["x_start"], estimate).addcmul_(c["new"], latest)
        y = y.addcmul_(c["old_1"], state[0]).addcmul_(c["old_2"], state[1])
        return (y if noise is None else y.addcmul_(c["noise"], noise)), (latest, state[0])

    def _orders(self, h: F64) -> list[int]:
        """The order of each step; 1 where it touches a level without signal or without noise, or stays at its level."""
        n, lower = len(h), self.lower_order_final and len(h) < FEW
        orders = [min(self.solver_order, i + 1) for i in range(n)]
        if lower and n > 1:
            orders[-2] = min(orders[-2], 2)
        if self.euler_at_final or lower:
            orders[-1] = 1
        finite = np.isfinite(h) & (h != 0)
        return [
            next((k for k in range(order, 1, -1) if finite[i - k + 1 : i + 1].all()), 1)
            for i, order in enumerate(orders)
        ]

    def _row(self, i: int, order: int, h: F64, t: Coefs, s: Coefs) -> tuple[float, ...]:
        """Coefficients of x_t, of the estimate of x_start by itself, and of the last three that are extended."""
        step = h[i]
        carry, size, exponent = s.sigma[i] / t.sigma[i], s.alpha[i], step
        if self.stochastic:
            carry, exponent = carry * np.exp(-step), 2 * step
        held = s.alpha[i] - carry * t.alpha[i]
        if order == 1:
            return carry, held, 0.0, 0.0, 0.0
        if self.in_noise:
            carry, size, exponent = s.alpha[i] / t.alpha[i], s.sigma[i], -step
            held = s.sigma[i] - carry * t.sigma[i]
        r = [h[i - j - 1] / step for j in range(order - 1)]
        exact = self.algorithm_type == "deis"
        midpoint = order == 2 and self.solver_type == "midpoint" and not exact
        line = held / 2 if midpoint else size * moment(exponent, 1)
        first = np.array([1.0, -1.0, 0.0]) / r[0]
        weights = np.array([held, 0.0, 0.0]) + line * first
        if order == 3:
            curve = (first - np.array([0.0, 1.0, -1.0]) / r[1]) / (r[0] + r[1])
            weights += (line * r[0] + size * moment(exponent, 2) / (1 if exact else 2)) * curve
        return carry, 0.0, *weights
