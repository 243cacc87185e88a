"""DPM-Solver of order 3: two more evaluations inside the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import flag
from diffkit.parts.samplers._coefficients import (
    MIN_SPACING,
    finite_or_zero,
    moments,
    noise_ratio,
    step_size,
    straight,
    within,
)
from diffkit.parts.samplers._singlestep import (
    MAX_UNBOUNDED_STEP,
    inverse_position,
    midpoint_plan,
    noise_to_data,
    second_stage,
)
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpm_solver_3")
@frozen
class DPMSolver3(MultistageSampler):
    """Three stages at lambda_t, lambda_t + r1 h and lambda_t + r2 h; ``psi(z) = (exp(z) - 1) / z - 1``.

    ``x_2 = held - sigma_2 r2/r1 psi(r2 h) (eps_1 - eps_t)``
    ``x_s = held - sigma_s psi(h) / r2 (eps_2 - eps_t)``, r1 = 1/3, r2 = 2/3.
    "held" is the step that holds eps_t. Three evaluations a step, one on the last.

    Attributes:
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 2.
    Deviates: on a discrete schedule the nodes are the nearest levels of the training table, and x_s takes a share of
    (eps_1 - eps_t), 0 at r2 = 2/3, that preserves the order at any r1 < r2. Where a step holds one level, and from h =
    4 on (see 'dpm_solver_2'), it is of order 2; where it holds none or touches infinite log-SNR, of order 1.
    """

    lower_order_long: bool = flag(True)
    order: ClassVar[int] = 3

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the second and third evaluation of each step, (n, 2)."""
        return np.stack([within(steps, 1 / 3), within(steps, 2 / 3)], axis=1)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the three stages."""
        first, second = steps.nodes
        (r1, over_r1), (r2, over_r2) = inverse_position(first, steps), inverse_position(second, steps)
        h = finite_or_zero(step_size(steps))
        three = (r2 - r1 > MIN_SPACING) & ((h < MAX_UNBOUNDED_STEP) | (not self.lower_order_long))
        share = np.divide(2 / 3 - r2, r1 - r2, out=np.zeros_like(h), where=three) * over_r1
        weight = np.where(three, (1 - share * r1) * over_r2, 0.0)
        inner = np.where(three, second.sigma * r2 * over_r1 * _psi(r2 * h) / noise_ratio(first), 0.0)
        outer = steps.s.sigma * _psi(h)
        on_first = outer * (share / noise_ratio(first) - weight * inner / second.sigma)
        on_second = outer * weight / noise_ratio(second)
        two = noise_to_data(steps, first, over_r1 / 2, self.lower_order_long)
        x_2, x_start_2 = straight(steps.t, second)
        third = {"x_2": x_2, "x_start_2": x_start_2, "inner": inner, "change_2": on_second}
        return midpoint_plan(steps, np.where(three, on_first, two)) | third

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, by the three stages; the state is empty."""
        c, estimate = row.coef, denoise(x, row.t).x_start
        y = (c["x"] * x).addcmul(c["x_start"], estimate)
        if last:
            return y, state
        change_1 = second_stage(denoise, x, c, row.nodes[0], estimate)[1]
        x_2 = (c["x_2"] * x).addcmul(c["x_start_2"], estimate).addcmul(c["inner"], change_1)
        change_2 = denoise(x_2, row.nodes[1]).x_start - estimate
        return y.addcmul(c["change"], change_1).addcmul(c["change_2"], change_2), state


def _psi(z: F64) -> F64:
    """``(exp(z) - 1) / z - 1``, which is -m_1(-z) of `moments`."""
    return -moments(-z, 2)[:, 1]
