"""DPM-Solver++(2M): second order from one evaluation a step and the estimate before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import choice, flag
from diffkit.parts.samplers._coefficients import step_size, straight
from diffkit.parts.samplers._multistep import data_plan, data_step, line_weights, relative_steps, start_history
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

    Attributes:
        solver: How the line's slope is weighed: "midpoint", as above, or "heun", by its exact integral.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
        lower_order_final: The last step is of order 1, the one before of order 2 at most, on any grid, as other
            libraries do below 15 steps.
    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2; "heun" as in other libraries.
    Deviates: a step more than 3 times as long as the one before is of order 1.
    """

    solver: str = choice("midpoint", ("midpoint", "heun"))
    lower_order_long: bool = flag(True)
    lower_order_final: bool = flag(False)
    order: ClassVar[int] = 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the estimate before."""
        t, s = steps
        _, held = straight(t, s)
        lower = self.lower_order_long, self.lower_order_final
        u = relative_steps(t.log_snr, s.log_snr, 1, *lower)
        return data_plan(steps, line_weights(self.solver, u, held, step_size(steps), s.alpha))

    def init(self, x: Tensor) -> State:
        """Return a history of one estimate, unused on the first step."""
        return start_history(x, 1)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row)
