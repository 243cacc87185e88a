"""diffusers' steps of a trajectory consistency model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer, number, numbers
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit_diffusers._ends import ended
from diffkit_diffusers._straight import straight_plan, straight_step
from diffkit_diffusers.betas import SHAPES, DiffusersBetas

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable, Steps


@frozen
class DiffusersTCD(Sampler):
    """Down the straight line past s to a stop at less noise, and back up to s with fresh noise.

    ``x_stop = alpha_stop x_start + sigma_stop eps``, ``x_s = (alpha_s / alpha_stop) x_stop + std z`` with
    ``std = sigma_s sqrt(1 - snr_s / snr_stop)``; the stop has ``(1 - gamma)`` of the timestep of s, rounded down. With
    gamma = 0 it is 'diffusers_ddim'; with 1 all but the noise of timestep 0 is fresh. One evaluation a step; the last
    adds no noise.

    It is for networks that were distilled into trajectory consistency models. With one that estimates the mean of clean
    data, and gamma above 0, no number of steps makes it accurate.

    Attributes:
        gamma: Stochasticity in [0, 1], which diffusers calls eta.
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1]; diffusers' is that of level 1.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_zero_snr: The chain of the
            network, in which stops have their timesteps; as of `DiffusersBetas`.
    Source: Zheng et al. 2024, arXiv:2402.19159, algorithm 4 (strategic stochastic sampling); rounding as in diffusers'
        TCDScheduler.
    """

    gamma: float = number(0.3, ge=0, le=1)
    final_alpha_bar: float = number(1.0, gt=0, le=1)
    num_train_timesteps: int = integer(1000, ge=1)
    beta_start: float = number(0.00085, gt=0, lt=1)
    beta_end: float = number(0.012, gt=0, lt=1)
    beta_schedule: str = choice("scaled_linear", tuple(SHAPES))
    trained_betas: tuple[float, ...] | None = numbers(None, optional=True, gt=0, le=1)
    rescale_zero_snr: bool = flag(False)
    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.gamma > 0

    def chain(self) -> ProcessTable:
        """Return the levels of the chain; level k is timestep k - 1."""
        betas = DiffusersBetas(
            self.beta_start, self.beta_end, self.beta_schedule, self.trained_betas, self.rescale_zero_snr
        )
        return betas.table(self.num_train_timesteps)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the noise."""
        t, s = ended(steps, self.final_alpha_bar)
        chain = self.chain().log_snr[1:]
        timestep = np.abs(chain - s.log_snr[:, None]).argmin(1)
        # diffusers multiplies in float32, which decides where a product is nearly whole
        stop = np.floor(np.float32(1 - self.gamma) * timestep.astype(np.float32)).astype(np.int64)
        less = np.where(stop < timestep, np.minimum(s.log_snr - chain[stop], 0), 0)
        return straight_plan(t, s, s.sigma * np.sqrt(-np.expm1(less)))

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s; the state is empty."""
        return straight_step(denoise, x, row, noise), state
