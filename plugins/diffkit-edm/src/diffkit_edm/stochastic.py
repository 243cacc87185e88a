"""EDM's stochastic sampler: a little fresh noise before each step, which corrects earlier errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Denoise, EarlyNoiseSampler, MultistageSampler, State, StepRow
from diffkit_edm._second_order import second_order_plan, second_order_step

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class EDMStochastic(EarlyNoiseSampler, MultistageSampler):
    """Raise the noise from sigma to ``(1 + gamma) sigma``, then step down with Heun's method from there.

    ``gamma = min(churn / T, sqrt(2) - 1)`` at levels between churn_min and churn_max, else 0. The raised level lies
    between those of the table. On a schedule of discrete levels it is the nearest one the network was trained at.
    The error falls with the square of the step once ``churn / T`` is below the cap, T > 2.4 churn.

    Attributes:
        churn: How much noise is exchanged over all steps, >= 0; 0 is 'edm_heun'.
        churn_min: Lowest sigma / alpha at which noise is added.
        churn_max: Highest sigma / alpha at which noise is added.
        noise_scale: Standard deviation of the noise added, > 0. 1 keeps the marginals; the paper takes 1.003 or 1.007
            to make up for noise that trained denoisers remove in excess.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2; defaults are table 5's for ImageNet-64, but for
        noise_scale.
    Deviates: written in sigma / alpha, so that it holds on any path.
    """

    churn: float = number(40.0, ge=0)
    churn_min: float = number(0.05, ge=0)
    churn_max: float = number(50.0, ge=0)
    noise_scale: float = number(1.0, gt=0)
    order: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.churn > 0

    def nodes(self, steps: Steps) -> F64 | None:
        """Return log_snr of the raised level of each step, (n, 1)."""
        if not self.stochastic:
            return None
        # Compared as log_snr, which is finite or -inf where sigma / alpha would divide by zero.
        low, high = (-2 * math.log(c) if c else math.inf for c in (self.churn_min, self.churn_max))
        within = (steps.t.log_snr <= low) & (steps.t.log_snr >= high)
        gamma = np.where(within, min(self.churn / steps.num_steps, math.sqrt(2) - 1), 0.0)
        return np.asarray(steps.t.log_snr - 2 * np.log1p(gamma))[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of the raise to the level between, and of Heun's step from it."""
        t, s = steps
        if not self.stochastic:
            return second_order_plan(t, s)
        (raised,) = steps.nodes
        gap = np.subtract(raised.log_snr, t.log_snr, out=np.zeros_like(t.log_snr), where=t.alpha > 0)
        return {
            "raise": np.divide(raised.alpha, t.alpha, out=np.ones_like(t.alpha), where=t.alpha > 0),
            "noise": self.noise_scale * raised.sigma * np.sqrt(-np.expm1(np.minimum(gap, 0))),
            **second_order_plan(raised, s),
        }

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        coef = row.coef
        if noise is None:
            return second_order_step(denoise, x, row.t, row.s, coef, last), state
        (raised,) = row.nodes
        churned = (coef["raise"] * x).addcmul(coef["noise"], noise)
        return second_order_step(denoise, churned, raised, row.s, coef, last), state
