"""diffusers' steps of a latent consistency model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Denoise, Sampler, State, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps

SIGMA_DATA = 0.5
"""diffusers' constant in the boundary condition; Karras et al. 2022, arXiv:2206.00364, table 1."""


@frozen
class DiffusersLCM(Sampler):
    """``x_s = alpha_s f + sigma_s z``, where f is the clean data that a network of one time reaches from x_t.

    ``f = c_skip x_t + c_out x_start``, ``c_skip = 0.25 / (tau^2 + 0.25)``, ``c_out = tau / sqrt(tau^2 + 0.25)``,
    ``tau = timestep_scaling time``: f is x_t itself at time 0. One evaluation a step; the last adds no noise.

    It is for networks that were distilled into consistency models, whose x_start is where the probability-flow ODE
    ends. With one that estimates the mean of clean data, no number of steps makes it accurate. 'flow_map' of
    diffkit-flowmap with ``stochastic=True, times=1`` is the same with f = x_start.

    Attributes:
        timestep_scaling: Factor of the time, > 0; the larger, the closer f is to x_start.
    Source: Luo et al. 2023, arXiv:2310.04378, algorithm 3; the boundary condition as in diffusers' LCMScheduler.
    """

    timestep_scaling: float = number(10.0, gt=0)
    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """True: every step but the last begins anew with noise."""
        return True

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the signal scale and the noise scale where each step ends."""
        return {"signal": steps.s.alpha, "noise": steps.s.sigma}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s; the state is empty."""
        c_skip, c_out = self._boundary(row.t.time, x)
        clean = (c_skip * x).addcmul(c_out, denoise(x, row.t).x_start)
        y = row.coef["signal"] * clean
        return (y if noise is None else y.addcmul(row.coef["noise"], noise)), state

    def _boundary(self, time: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out, 0-d or (B,1..)."""
        time = time.to(x.dtype)
        scaled = self.timestep_scaling * (time if time.ndim == 0 else time.view(-1, *(1,) * (x.ndim - 1)))
        total = scaled.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, scaled * total.rsqrt()
