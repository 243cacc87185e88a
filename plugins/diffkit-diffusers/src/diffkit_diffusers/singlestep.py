"""diffusers' single-step DPM-Solver: steps of two or three intervals, one evaluation in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer, number
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.table import Coefs
from diffkit_diffusers._ends import ended
from diffkit_diffusers._exponential import moment

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class DiffusersSinglestep(Sampler):
    """Intervals in groups of ``solver_order``; each goes from the start of its group by the estimates in it.

    With D_j the estimates of the group, ``h = lambda_s - lambda_0`` and r_j where in h they lie:
    ``x_s = sigma_s/sigma_0 x_0 + alpha_s (1 - exp(-h)) D_0 + ...``, to the order of the number of estimates. In contrast
    to 'dpmpp_2s' the evaluations inside of a step are at levels of the table in use, which need not be its middle.

    Attributes:
        algorithm_type: "dpmsolver++" extends x_start, "dpmsolver" eps.
        solver_order: Estimates in a group, 1 to 3.
        solver_type: "midpoint", or "heun", the exact integral of the line or parabola.
        lower_order_final: Lower orders in the last group. Without it the number of steps must be a multiple of
            solver_order, and else this is as if True; so it is if the chain ends at clean data.
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1].
    Source: Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2, and arXiv:2211.01095, algorithm 1; which steps have
        which order as in diffusers' DPMSolverSinglestepScheduler.
    """

    algorithm_type: str = choice("dpmsolver++", ("dpmsolver++", "dpmsolver"))
    solver_order: int = integer(2, ge=1, le=3)
    solver_type: str = choice("midpoint", ("midpoint", "heun"))
    lower_order_final: bool = flag(False)
    final_alpha_bar: float = number(1.0, gt=0, le=1)

    @property
    def order(self) -> int:
        """As the solver's, at most 2: the steps at the end are of lower order."""
        return min(self.solver_order, 2)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of the group's start and of its estimates, the latest first."""
        t, s = ended(steps, self.final_alpha_bar)
        rows = []
        for i, order in enumerate(self._orders(steps.num_steps)):
            first = i - order + 1
            group = [Coefs(*(float(column[k]) for column in t)) for k in range(first, i + 1)]
            start, *estimates = self._step(group, Coefs(*(float(column[i]) for column in s)))
            newest = [*estimates[::-1], 0.0, 0.0][:3]
            rows.append((start, *newest, float(order == 1)))
        names = ("start", "x_start", "x_start_1", "x_start_2", "new")
        return dict(zip(names, np.array(rows).T, strict=True))

    def init(self, x: Tensor) -> State:
        """Return no start of a group, and a history of two estimates; none is used in the first step."""
        return tuple(x.new_zeros(x.shape) for _ in range(3))

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, the start of the group, and the history."""
        c, (start, before, earlier) = row.coef, state
        estimate = denoise(x, row.t).x_start
        start = start + c["new"] * (x - start)
        y = (c["start"] * start).addcmul_(c["x_start"], estimate)
        y = y.addcmul_(c["x_start_1"], before).addcmul_(c["x_start_2"], earlier)
        return y, (start, estimate, before)

    def _orders(self, n: int) -> list[int]:
        """The order of each step."""
        group, order = list(range(1, self.solver_order + 1)), self.solver_order
        whole, rest = divmod(n, order)
        if self.lower_order_final or rest or self.final_alpha_bar == 1:
            whole, rest = (whole, rest) if rest else (whole - 1, order)
            last = [*group[: rest - 1], 1] if rest == order else group[:rest]
            orders = group * whole + last
        else:
            orders = group * whole
        return [*orders[:-1], 1] if self.final_alpha_bar == 1 else orders

    def _step(self, at: list[Coefs], to: Coefs) -> F64:
        """Coefficients of x at the first of some levels, and of the estimates of x_start at each of them.

        Both forms of the solver integrate exp(z) and a polynomial: that in eps has h of the other sign, and its scales
        exchanged.
        """
        (alpha_0, sigma_0, log_snr_0), (alpha, sigma, log_snr) = at[0], to
        h = (log_snr - log_snr_0) / 2
        order = len(at) if np.isfinite(h) else 1
        estimates, size, sign = np.eye(len(at) + 1)[1:], alpha, 1.0
        carry = np.eye(1, len(at) + 1)[0] * (sigma / sigma_0)
        if self.algorithm_type == "dpmsolver" and order > 1:
            estimates, size, sign = self._noise(at), sigma, -1.0
            carry = np.eye(1, len(at) + 1)[0] * (alpha / alpha_0)
        held = alpha - sigma / sigma_0 * alpha_0 if sign > 0 else sigma - alpha / alpha_0 * sigma_0
        out: F64 = carry + held * estimates[0]
        if order == 1:
            return out
        r = [(node.log_snr - log_snr_0) / 2 / h for node in at[1:order]]
        slopes = [(estimates[j + 1] - estimates[0]) / r[j] for j in range(order - 1)]
        line, parabola = size * moment(sign * h, 1), size * moment(sign * h, 2)
        if self.solver_type == "midpoint":
            return out + (held / 2 if order == 2 else line) * slopes[-1]
        if order == 2:
            return out + line * slopes[0]
        curve = (slopes[1] - slopes[0]) / (r[1] - r[0])
        return out + line * (slopes[0] - r[0] * curve) + parabola * curve

    def _noise(self, at: list[Coefs]) -> F64:
        """Coefficients of eps at each level of a group, as those of `_step`."""
        rows = []
        for j, node in enumerate(at):
            x = np.zeros(len(at) + 1)
            x[: j + 1] = self._step(at[:j], node) if j else 1.0
            x[j + 1] -= node.alpha
            rows.append(x / node.sigma)
        return np.stack(rows)
