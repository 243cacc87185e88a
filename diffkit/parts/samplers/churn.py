"""EDM's stochastic sampler: a little noise is added before each step of Heun's method, or of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, number
from diffkit.parts.samplers._coefficients import noise_ratio, within
from diffkit.parts.samplers._singlestep import (
    midpoint_plan_in_noise,
    midpoint_step,
    straight_plan,
    trapezoid_plan,
    trapezoid_step,
)
from diffkit.protocols import Denoise, EarlyNoiseSampler, MultistageSampler, State, StepRow
from diffkit.registry import registry
from diffkit.table import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64


@registry("sampler").register("churn")
@frozen
class Churn(EarlyNoiseSampler, MultistageSampler):
    """``rho_u = (1 + gamma) rho_t``: noise from t up to u, then a step from u to s; ``rho = sigma / alpha``.

    ``gamma = min(s_churn / n, sqrt(2) - 1)`` where s_tmin <= rho_t <= s_tmax, else 0; n is the number of steps. Two
    evaluations a step, one on the last; one with "euler".

    Attributes:
        s_churn: Total amount of churn, >= 0.
        s_tmin, s_tmax: Range of rho_t in which noise is added, >= 0, in units of the data.
        s_noise: Standard deviation of the noise, > 0. 1 gives the exact marginals; slightly more compensates for
            the noise that trained denoisers remove in excess.
        solver: The step from u to s: "heun", "euler" or "dpm2".
        lower_order_long: As in 'heun'.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2; the defaults are those of its table 5 for ImageNet-64,
    except s_noise: 1.003 there, 1.007 for CIFAR-10.
    Deviates: on a discrete schedule u is the nearest level of the training table at or above t, and the noise is that
    between t and u; a level without signal gets none.
    """

    s_churn: float = number(40.0, ge=0)
    s_tmin: float = number(0.05, ge=0)
    s_tmax: float = number(50.0, ge=0)
    s_noise: float = number(1.0, gt=0)
    solver: str = choice("heun", ("heun", "euler", "dpm2"))
    lower_order_long: bool = flag(True)

    @property
    def order(self) -> int:
        """That of the solver: 1 of "euler", else 2."""
        return 1 if self.solver == "euler" else 2

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.s_churn > 0

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the level each step starts from, once noise is added, and of the middle for "dpm2"."""
        rho = noise_ratio(steps.t)
        churned = (rho >= self.s_tmin) & (rho <= self.s_tmax)
        gamma = np.where(churned, min(self.s_churn / steps.num_steps, np.sqrt(2) - 1), 0.0)
        up = np.asarray(steps.t.log_snr - 2 * np.log1p(gamma))
        if self.solver != "dpm2":
            return up[:, None]
        return np.stack([up, within(Steps(steps.t._replace(log_snr=up), steps.s), 0.5)], axis=1)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the way up, and of Heun's step down."""
        up = steps.nodes[0]
        grow, std = Steps(up, steps.t).noising()
        return self._solver_plan(Steps(up, steps.s, steps.nodes[1:])) | {"grow": grow, "noise": self.s_noise * std}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, after churning noise into it; the state is empty."""
        c = row.coef
        if noise is not None:
            x = (c["grow"] * x).addcmul(c["noise"], noise)
        if self.solver == "heun":
            return trapezoid_step(denoise, x, row.nodes[0], row.s, c, last), state
        estimate = denoise(x, row.nodes[0]).x_start
        if self.solver == "euler":
            return (c["x"] * x).addcmul_(c["x_start"], estimate), state
        return midpoint_step(denoise, x, row, last, estimate), state

    def _solver_plan(self, steps: Steps) -> dict[str, F64]:
        if self.solver == "euler":
            return straight_plan(steps)
        make = trapezoid_plan if self.solver == "heun" else midpoint_plan_in_noise
        return make(steps, self.lower_order_long)
