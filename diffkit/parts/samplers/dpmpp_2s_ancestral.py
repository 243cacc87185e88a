"""DPM-Solver++(2S) ancestral: its two-evaluation step to less noise, and fresh noise for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.parts.samplers._coefficients import straight, within
from diffkit.parts.samplers._singlestep import inverse_position, midpoint_plan, midpoint_step
from diffkit.parts.samplers._stochastic import fresh_std, noise_column, variance_option, with_noise, without_noise
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry
from diffkit.table import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64


@registry("sampler").register("dpmpp_2s_ancestral")
@frozen
class DPMSolverPP2SAncestral(MultistageSampler):
    """'dpmpp_2s' from sigma_t to ``sqrt(sigma_s^2 - std^2)``, then ``std noise``.

    ``std = eta sigma_s sqrt(1 - snr_t / snr_s)``
    The node is within the step down to where noise is added, which may be a cleaner level than s. Two evaluations a
    step, one on the last.

    Attributes:
        eta: Stochasticity in [0, 1]; 0 is 'dpmpp_2s'.
        r: Where in that step the second evaluation is, as a share of its length in lambda, in (0, 1).
        variance: "analytic" is std as above; "learned" is eta times the variance part's standard deviation.
        s_noise: Standard deviation of the noise, > 0. Other values than 1 compensate for trained denoisers, and change
            the marginals.
    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1, and Song et al. 2021, arXiv:2010.02502, eq. 16, which
    together are the sampler of this name in other libraries.
    Deviates: as 'dpmpp_2s', where a step holds no level of a discrete schedule and at infinite log-SNR.
    """

    eta: float = number(1.0, ge=0, le=1)
    r: float = number(0.5, gt=0, lt=1)
    variance: str = variance_option()
    s_noise: float = number(1.0, gt=0)

    @property
    def order(self) -> int:
        """2, in mean and variance if there is noise; 1 if that noise is not the solver's own."""
        return 1 if self.stochastic and self.variance == "learned" else 2

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.eta > 0

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the second evaluation of each step, (n, 1)."""
        return within(without_noise(steps, self.eta), self.r)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of both stages and, if stochastic, of the noise."""
        part = without_noise(steps, self.eta)
        _, held = straight(*part)
        plan = midpoint_plan(part, held * inverse_position(steps.nodes[0], part)[1] / 2)
        return (
            plan | noise_column(self.s_noise * fresh_std(steps, self.eta), steps, self.variance)
            if self.stochastic
            else plan
        )

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, by a DPM-Solver++ 2S step and fresh noise; the state is empty."""
        prediction = denoise(x, row.t)
        y = midpoint_step(denoise, x, row, last, prediction.x_start)
        return with_noise(y, row.coef, noise, self.variance, prediction), state
