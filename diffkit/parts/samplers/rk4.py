"""Runge and Kutta's classical method of order 4, in rho."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import flag
from diffkit.parts.samplers._coefficients import MIN_SPACING, moments, noise_ratio, step_size
from diffkit.parts.samplers._singlestep import MAX_UNBOUNDED_STEP, midpoint_plan, second_stage
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("rk4")
@frozen
class RK4(MultistageSampler):
    """``x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) (eps_t + 2 eps_2 + 2 eps_3 + eps_4) / 6``.

    ``rho = sigma / alpha``; eps_2 and eps_3 are at the middle of the step in rho, reached by eps_t and by eps_2, and
    eps_4 at s, reached by eps_3. Four evaluations a step; one on the last, which ends at level 0, where the
    network is not defined.

    Attributes:
        lower_order_long: From a step of h >= 4 on (in lambda) take that of 'heun'; False is the method there, too.
    Source: Kutta 1901, in the variable rho of Karras et al. 2022, arXiv:2206.00364.
    Deviates: on a discrete schedule the middle is the nearest level of the training table, and the weights are those of
    order 3 for that place. Where a step holds no level it is Heun's; from a level without signal it is of order 1.
    Levels between those of the table, as "karras20:exact" has, allow order 4.
    """

    lower_order_long: bool = flag(True)
    order: ClassVar[int] = 4

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the middle of each step in rho, (n, 1); that of t where an end is infinite."""
        rho_t, rho_s = noise_ratio(steps.t), noise_ratio(steps.s)
        with np.errstate(divide="ignore", invalid="ignore"):
            middle = -2 * np.log((rho_t + rho_s) / 2)
        return np.where(np.isfinite(step_size(steps)), middle, steps.t.log_snr)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the stages in differences of x_start from that at t; "change" is the fourth's."""
        t, s, node = steps.t, steps.s, steps.nodes[0]
        h, rho_t = step_size(steps), noise_ratio(t)
        with np.errstate(all="ignore"):
            rho, end = noise_ratio(node), noise_ratio(s)
            way = end - rho_t
            place = (rho - rho_t) / way
            short = np.isfinite(h) & ((h < MAX_UNBOUNDED_STEP) | (not self.lower_order_long))
            inside = short & (place > MIN_SPACING) & (place < 1 - MIN_SPACING)
            second, third, last = _weights(np.where(inside, place, 0.5))
            last = np.where(inside, last, 0.5)
            # eps_2 - eps_t = -d_2 / rho, eps_3 - eps_t = on_second d_2 - d_3 / rho, with d the differences of x_start
            on_second = -place * way / rho**2
            from_fourth = last * way / end
            columns = {
                "third_on_second": -node.alpha * place * way / rho,
                "fourth_on_second": s.alpha * way * on_second,
                "fourth_on_third": -s.alpha * way / rho,
                "second": s.alpha * way * (-second / rho + (third + from_fourth) * on_second),
                "third": -s.alpha * way * (third + from_fourth) / rho,
            }
            at_end = np.where(short, -s.alpha * from_fourth, s.alpha * moments(h, 2)[:, 1])
        stages = {name: np.where(inside, column, 0.0) for name, column in columns.items()}
        return midpoint_plan(steps, np.where(np.isfinite(h), at_end, 0.0)) | stages

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, by the four stages; the state is empty."""
        c, estimate = row.coef, denoise(x, row.t).x_start
        y = (c["x"] * x).addcmul_(c["x_start"], estimate)
        if last:
            return y, state
        x_2, second = second_stage(denoise, x, c, row.nodes[0], estimate)
        third = denoise(x_2.addcmul(c["third_on_second"], second), row.nodes[0]).x_start - estimate
        x_4 = y.addcmul(c["fourth_on_second"], second).addcmul_(c["fourth_on_third"], third)
        fourth = denoise(x_4, row.s).x_start - estimate
        return y.addcmul(c["second"], second).addcmul_(c["third"], third).addcmul_(c["change"], fourth), state


def _weights(place: F64) -> tuple[F64, F64, F64]:
    """Weights of the last three stages by where the middle ones are: 1/3, 1/3, 1/6 at the middle, else of order 3."""
    both = 1 / (6 * place * (1 - place))
    last = 1 / 2 - both * place
    third = (1 / 6 - last * place) / place**2
    return both - third, third, last
