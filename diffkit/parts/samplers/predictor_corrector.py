"""Predictor-corrector sampling: a step of the probability flow, then one of Langevin dynamics at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import flag, number
from diffkit.parts.samplers._coefficients import step_size
from diffkit.parts.samplers._singlestep import straight_plan, straight_step
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("predictor_corrector")
@frozen
class PredictorCorrector(MultistageSampler):
    """``x = alpha_s x_start + sigma_s eps`` (the predictor), then ``x_s = alpha_s x_start + sigma_s (c eps + d z)``.

    x_start and eps of the corrector are those at x; z is noise, ``c = 1 - 2 snr^2``, ``d = sqrt(1 - c^2)``. By the
    score -eps / sigma_s that is ``x_s = x + step score + sqrt(2 step (1 - snr^2)) z``, ``step = 2 (snr sigma_s)^2``.
    Two evaluations a step, one on the last, which ends at level 0, where there is no score.

    Attributes:
        snr: Length of the corrector's change by the score over that by noise, in (0, 0.7]: from 0.71 on c is negative.
        bounded: Correct with no more noise than an ancestral step as long as the predictor's adds, so that samples
            converge with the number of steps; False is the published step on short steps, too, whose own error, up
            to about snr^2 of the variance of data, remains.
    Source: Song et al. 2021, arXiv:2011.13456, algorithm 1 with one corrector step, the predictor of the probability
    flow, and algorithms 4 and 5; snr as in the authors' code.
    Deviates: the norms of noise and score in a corrector's step are those expected, so that it depends on the level
    alone; d keeps the spread of a single data point, sqrt(2 step) enlarges it.
    """

    snr: float = number(0.16, gt=0, le=0.7)
    bounded: bool = flag(True)
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the predictor, and of the corrector."""
        kept = np.full(steps.num_steps, 1 - 2 * self.snr**2)
        if self.bounded:
            kept = np.maximum(kept, np.exp(-step_size(steps)))
        alpha, sigma = steps.s.alpha, steps.s.sigma
        corrector = {"kept": kept, "corrected": (1 - kept) * alpha, "noise": np.sqrt(1 - kept**2) * sigma}
        return straight_plan(steps) | corrector

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, predicted and corrected; the state is empty."""
        c, x = row.coef, straight_step(denoise, x, row)
        if last:
            return x, state
        assert noise is not None, "a stochastic sampler is always given noise"
        estimate = denoise(x, row.s).x_start
        return (c["kept"] * x).addcmul_(c["corrected"], estimate).addcmul_(c["noise"], noise), state
