"""DPM-Solver of order 2: one more evaluation inside the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.parts.samplers._coefficients import within
from diffkit.parts.samplers._singlestep import midpoint_plan_in_noise, midpoint_step
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpm_solver_2")
@frozen
class DPMSolver2(MultistageSampler):
    """``x_s = alpha_s/alpha_t x_t - sigma_s (exp(h) - 1) (eps_t + (eps_u - eps_t) / 2r)``, u at lambda_t + r h.

    ``h = lambda_s - lambda_t``; x_u is reached by holding eps_t. Two evaluations a step, one on the last.

    Attributes:
        r: Where in the step the second evaluation is, as a share of h, in (0, 1). 0.5 is the paper's.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1 (any r: algorithm 4 in its appendix).
    Deviates: on a discrete schedule u is the nearest level of the training table and r follows it; where the step holds
    no level, or touches one without signal or without noise, it is a step of order 1. From h = 4 on the difference
    weighs what it does in 'dpmpp_2s', which no longer step enlarges.
    """

    r: float = number(0.5, gt=0, lt=1)
    lower_order_long: bool = flag(True)
    order: ClassVar[int] = 2

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the second evaluation of each step, (n, 1)."""
        return within(steps, self.r)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of both stages."""
        return midpoint_plan_in_noise(steps, self.lower_order_long)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return midpoint_step(denoise, x, row, last), state
