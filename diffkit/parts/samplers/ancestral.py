"""DDPM's sampler: draw from p(x_{k-1} | x_k) at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


NONE = -1e4
"""Finite log of a standard deviation whose exponential is 0 in float64."""


@registry("sampler").register("ancestral")
@frozen
class Ancestral(Sampler):
    """``x_s = coef_x_start x_start + coef_x_t x_t + exp(log_variance / 2) noise``, no noise on the last step.

    The mean is the posterior's at the estimate of x_start; the variance is that of the variance part.
    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the posterior's coefficients, and the addend to the log of the deviation: 0, or `NONE` at the end."""
        posterior = steps.posterior()
        return {
            "x": posterior.coef_x_t,
            "x_start": posterior.coef_x_start,
            "log_noise": np.where(steps.s.sigma > 0, 0.0, NONE),
        }

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return an ancestral draw one level down; the state is empty."""
        assert noise is not None, "a stochastic sampler always receives noise"
        prediction, c = denoise(x, row.t), row.coef
        assert prediction.log_variance is not None, (
            "composition raises an error for ancestral sampling without a variance"
        )
        mean = (c["x"] * x).addcmul_(c["x_start"], prediction.x_start)
        std = c["log_noise"].add(prediction.log_variance, alpha=0.5).exp_()
        return mean.addcmul_(std, noise), state
