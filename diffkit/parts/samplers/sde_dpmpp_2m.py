"""SDE-DPM-Solver++(2M): the multistep solver with fresh noise, exact in its linear part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import choice, flag, number
from diffkit.parts.samplers._coefficients import step_size
from diffkit.parts.samplers._multistep import data_step, line_weights, relative_steps, start_history
from diffkit.parts.samplers._stochastic import noise_column, reverse_sde, variance_option
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("sde_dpmpp_2m")
@frozen
class SDEDPMSolverPP2M(Sampler):
    """``x_s = sigma_s/sigma_t exp(-eta h) x_t + alpha_s (1 - exp(-(1 + eta) h)) D + std noise``.

    ``std = sigma_s sqrt(1 - exp(-2 eta h))``
    ``D = (1 + 1/2r) x_start - 1/2r x_start_1``, ``r = h_1 / h``, h = lambda_s - lambda_t. The first step, the last one,
    and the first two from a level without signal take D = x_start.

    Attributes:
        eta: Stochasticity, >= 0: 0 is 'dpmpp_2m', 1 the reverse SDE, whose noise is the posterior's.
        variance: "analytic" is the solver's own; "learned" multiplies it by the variance part's over the posterior's,
            so at eta = 1 it is the variance part's.
        s_noise: Standard deviation of the noise, > 0. Other values than 1 compensate for trained denoisers, and change
            the marginals.
        solver: How the slope is weighed: "midpoint", as above, or "heun", by its exact integral.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
        lower_order_final: The last step is of order 1, the one before of order 2 at most, on any grid, as other
            libraries do below 15 steps.
    Source: Lu et al. 2022, arXiv:2211.01095, section 5; eta: the family of reverse SDEs of Song et al. 2021,
    arXiv:2011.13456, and Karras et al. 2022, arXiv:2206.00364, eq. 6.
    Deviates: a step more than 3 times as long as the one before is of order 1.
    """

    eta: float = number(1.0, ge=0)
    variance: str = variance_option()
    s_noise: float = number(1.0, gt=0)
    solver: str = choice("midpoint", ("midpoint", "heun"))
    lower_order_long: bool = flag(True)
    lower_order_final: bool = flag(False)

    @property
    def order(self) -> int:
        """2, in mean and variance if there is noise; 1 if that noise is not the solver's own."""
        return 1 if self.stochastic and self.variance == "learned" else 2

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.eta > 0

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return SDE-DPM-Solver++ 2M's coefficients of x_t, x_start, the estimate before and any noise."""
        t, s = steps
        carry, held, std = reverse_sde(steps, self.eta)
        lower = self.lower_order_long, self.lower_order_final
        u = relative_steps(t.log_snr, s.log_snr, 1, *lower)
        older = line_weights(self.solver, u, held, (1 + self.eta) * step_size(steps), s.alpha)[:, 0]
        plan = {"x": carry, "x_start": held - older, "x_start_1": older}
        return plan | noise_column(self.s_noise * std, steps, self.variance) if self.stochastic else plan

    def init(self, x: Tensor) -> State:
        """Return a history of one estimate, unused on the first step."""
        return start_history(x, 1)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row, noise, self.variance)
