"""diffusers' UniPC, with its orders at the end of a chain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer, number
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit_diffusers._ends import ended

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class DiffusersUniPC(Sampler):
    """``x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) D + sum_j v_j (D_j - D)``, corrected by the next estimate.

    D is x_start at t, D_j at the levels before (the predictor), and at s as well (the corrector, which is folded into
    the step that follows); v integrates the polynomial through them, but a single difference has B / 2u. The built-in
    'unipc' is the same method; it lowers the order at the last step only, and leaves out estimates that a long step
    would extend too far.

    Attributes:
        solver_order: Number of estimates of the predictor, 1 to 3.
        solver_type: B is "bh1", ``alpha_s h``, or "bh2", ``alpha_s (1 - exp(-h))``.
        lower_order_final: In the last steps at most as many estimates as there are steps left.
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1].
    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, predicting data, as in diffusers'
        UniPCMultistepScheduler.
    """

    solver_order: int = integer(2, ge=1, le=3)
    solver_type: str = choice("bh2", ("bh1", "bh2"))
    lower_order_final: bool = flag(True)
    final_alpha_bar: float = number(1.0, gt=0, le=1)

    @property
    def order(self) -> int:
        """One more than the estimates, as corrected, but at most 3: the first steps leave an error of that order."""
        return min(self.solver_order + 1, 3)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of x_t, of x_start and of the earlier estimates."""
        t, s = ended(steps, self.final_alpha_bar)
        with np.errstate(invalid="ignore"):
            h = (s.log_snr - t.log_snr) / 2
        carry = s.sigma / t.sigma
        held = s.alpha - carry * t.alpha
        orders = self._orders(h)
        rows = np.zeros((len(h), self.solver_order + 1))
        for i, order in enumerate(orders):
            rows[i, 0] = held[i]
            rows[i] += self._differences(i, order, h, s.alpha, corrector=False)[1:]
            if i:  # what the corrector changes in x_t, by the estimates of this step and of earlier ones
                before = (self._differences(i - 1, orders[i - 1], h, s.alpha, corrector=c) for c in (True, False))
                corrected, predicted = before
                rows[i] += carry[i] * (corrected - predicted)[:-1]
        names = ["x_start", *(f"x_start_{j}" for j in range(1, self.solver_order + 1))]
        return {"x": carry} | dict(zip(names, rows.T, strict=True))

    def init(self, x: Tensor) -> State:
        """Return a history, unused on the first step."""
        return tuple(x.new_zeros(x.shape) for _ in range(self.solver_order))

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        c, estimate = row.coef, denoise(x, row.t).x_start
        y = (c["x"] * x).addcmul_(c["x_start"], estimate)
        for j, old in enumerate(state, 1):
            y = y.addcmul_(c[f"x_start_{j}"], old)
        return y, (estimate, *state)[: self.solver_order]

    def _orders(self, h: F64) -> list[int]:
        """How many estimates each step uses; none beyond a step from or to infinite log-SNR."""
        n, finite, orders = len(h), np.isfinite(h), []
        for i in range(n):
            most = min(self.solver_order, n - i) if self.lower_order_final else self.solver_order
            most = min(most, i + 1)
            orders.append(next((k for k in range(most, 0, -1) if finite[i - k + 1 : i + 1].all()), 1))
        return orders

    def _differences(self, i: int, order: int, h: F64, alpha: F64, *, corrector: bool) -> F64:
        """Weights of the estimates at s, at t and at the levels before, (solver_order + 2,), which sum to 0."""
        out, step = np.zeros(self.solver_order + 2), h[i]
        if not np.isfinite(step):
            return out
        u = [-sum(h[i - k : i]) / step for k in range(1, order)]
        places = [0, *range(2, order + 1)] if corrector else list(range(2, order + 1))
        u = [1.0, *u] if corrector else u
        if not u:
            return out
        if len(u) == 1:
            size = alpha[i] * (step if self.solver_type == "bh1" else -np.expm1(-step))
            weights = np.array([size / 2 / u[0]])
        else:
            powers = np.array([np.array(u) ** k for k in range(1, len(u) + 1)])
            weights = alpha[i] * np.linalg.solve(powers, [_moment(step, k) for k in range(1, len(u) + 1)])
        out[places] = weights
        out[1] -= weights.sum()
        return out


def _moment(h: float, k: int) -> float:
    """``integral over 0..1 of h exp(-h (1 - u)) u^k du``, as a series of positive terms times exp(-h)."""
    if abs(h) > 4:
        found = -np.expm1(-h)
        for j in range(1, k + 1):
            found = 1 - j / h * found
        return float(found)
    terms = (h ** (j + 1) / math.factorial(j) / (j + k + 1) for j in range(60))
    return float(np.exp(-h) * sum(terms))
