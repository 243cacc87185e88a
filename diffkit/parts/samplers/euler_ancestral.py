"""Euler ancestral: a step of DDIM with the posterior's noise, or a learned one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.parts.samplers._coefficients import straight
from diffkit.parts.samplers._stochastic import fresh_std, noise_column, variance_option, with_noise, without_noise
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("euler_ancestral")
@frozen
class EulerAncestral(Sampler):
    """``x_s = alpha_s x_start + sqrt(sigma_s^2 - std^2) eps + std noise``.

    ``std = eta sigma_s sqrt(1 - snr_t / snr_s)``
    An Euler step in rho to less noise than at s, and fresh noise for the rest. eta = 1 is ancestral sampling. Unlike
    'ddim' it can take a learned variance.

    Attributes:
        eta: Stochasticity in [0, 1].
        variance: "analytic" is std as above; "learned" is eta times the variance part's standard deviation.
        s_noise: Standard deviation of the noise, > 0. Other values than 1 compensate for trained denoisers, and change
            the marginals.
    Source: Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16, as other libraries use this name.
    """

    eta: float = number(1.0, ge=0, le=1)
    variance: str = variance_option()
    s_noise: float = number(1.0, gt=0)
    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.eta > 0

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and, if stochastic, of the noise."""
        x, x_start = straight(*without_noise(steps, self.eta))
        plan = {"x": x, "x_start": x_start}
        return (
            plan | noise_column(self.s_noise * fresh_std(steps, self.eta), steps, self.variance)
            if self.stochastic
            else plan
        )

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, by an Euler step and fresh noise; the state is empty."""
        c, prediction = row.coef, denoise(x, row.t)
        y = (c["x"] * x).addcmul(c["x_start"], prediction.x_start)
        return with_noise(y, c, noise, self.variance, prediction), state
