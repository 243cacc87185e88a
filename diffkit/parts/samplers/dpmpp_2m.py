"""DPM-Solver++(2M): second order from one evaluation a step and the estimate before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.parts.samplers._coefficients import straight
from diffkit.parts.samplers._multistep import data_plan, data_step, midpoint_slope, relative_steps, start_history
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpmpp_2m")
@frozen
class DPMSolverPP2M(Sampler):
    """``x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) ((1 + 1/2r) x_start - 1/2r x_start_1)``, ``r = h_1 / h``.

    h = lambda_s - lambda_t of this step, h_1 of the one before, whose estimate x_start_1 is. The first step, the last
    one, and the first two from a level without signal hold x_start constant.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    Deviates: a step more than 3 times as long as the one before is of order 1.
    """

    order: ClassVar[int] = 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the estimate before."""
        t, s = steps
        _, held = straight(t, s)
        return data_plan(steps, midpoint_slope(relative_steps(t.log_snr, s.log_snr, 1), held))

    def init(self, x: Tensor) -> State:
        """Return a history of one estimate, unused on the first step."""
        return start_history(x, 1)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row)
