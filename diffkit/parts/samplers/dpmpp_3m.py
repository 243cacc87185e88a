"""DPM-Solver++(3M): third order from one evaluation a step and the two estimates before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import choice, flag
from diffkit.parts.samplers._coefficients import moments, step_size, straight
from diffkit.parts.samplers._multistep import (
    PUBLISHED_3M,
    data_plan,
    data_step,
    polynomial_weights,
    relative_steps,
    start_history,
    startup_correction,
)
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpmpp_3m")
@frozen
class DPMSolverPP3M(Sampler):
    """``x_s = sigma_s/sigma_t x_t + sigma_s integral of exp(lambda) P(lambda)``, P a parabola.

    P goes through x_start at t and at the two levels before; the integral is exact. Order 1 where an end has no signal
    or no noise.

    Attributes:
        weights: "exact" integrals, or "published": the second difference weighs half of its integral and the first step
            is not corrected, as in the authors' code and other libraries; of order 2.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
        lower_order_final: The last step is of order 1, the one before of order 2 at most, on any grid, as other
            libraries do below 15 steps.
    Source: Lu et al. 2022, arXiv:2211.01095, the exact solution in data prediction (proposition 4.1), to third order.
    Deviates: the published weights are of order 2, where this is of order 3. The first step is corrected by the second
    estimate, since its error would remain. Estimates are left out where a step is longer than the stretch back to them
    (the last one: than 3 times that).
    """

    weights: str = choice("exact", ("exact", "published"))
    lower_order_long: bool = flag(True)
    lower_order_final: bool = flag(False)

    @property
    def order(self) -> int:
        """3; 2 with the published weights or ``lower_order_final``."""
        return 3 if self.weights == "exact" and not self.lower_order_final else 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return DPM-Solver++ 3M's coefficients of x_t, of x_start and of the two estimates before."""
        t, s = steps
        lower = self.lower_order_long, self.lower_order_final
        h, u = step_size(steps), relative_steps(t.log_snr, s.log_snr, 2, *lower)
        integrals = s.alpha[:, None] * moments(h, 3)
        carry, _ = straight(t, s)
        if self.weights == "published":
            return data_plan(steps, polynomial_weights(u, integrals * PUBLISHED_3M))
        return data_plan(steps, startup_correction(polynomial_weights(u, integrals), u, h, integrals, carry))

    def init(self, x: Tensor) -> State:
        """Return a history of two estimates, unused on the first step."""
        return start_history(x, 2)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row)
