"""Restart: Heun's method that goes back up to a noisier level a few times, with fresh noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.samplers._singlestep import trapezoid_plan, trapezoid_step
from diffkit.protocols import Denoise, EarlyNoiseSampler, MultistageSampler, RoutedSampler, State, StepRow
from diffkit.registry import registry
from diffkit.table import Coefs, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64


@registry("sampler").register("restart")
@frozen
class Restart(EarlyNoiseSampler, RoutedSampler, MultistageSampler):
    """Down to rho_min, then `times` times: noise up to rho_max and down again; then on to level 0. Steps are Heun's.

    Noise erases the error of the steps before, to which a fully stochastic sampler would add at every step.
    ``rho = sigma / alpha``. Two evaluations a step, one on the last.

    Attributes:
        times: Number of repetitions of the stretch, 0 to 1000; 0 is 'heun'.
        rho_min, rho_max: Ends of the stretch, in units of the data, > 0; the nearest levels of the table in use are
            taken, at least one step apart. On a table with fewer than two levels with signal nothing is repeated.
    Source: Xu et al. 2023, arXiv:2306.14878, algorithm 1; the defaults are its CIFAR-10 setting.
    Deviates: the stretch uses the levels of the table in use, where the paper gives it a grid of its own.
    """

    times: int = integer(2, ge=0, le=1000)
    rho_min: float = number(0.06, gt=0)
    rho_max: float = number(0.3, gt=0)
    order: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.times > 0

    def route(self, log_snr: F64) -> Sequence[tuple[int, int]] | None:
        """Return the steps, those of the stretch once and `times` times more."""
        top = len(log_snr) - 1
        down = [(k, k - 1) for k in range(top, 0, -1)]
        highest = top if np.isfinite(log_snr[-1]) else top - 1
        if not self.times or highest < 2:
            return None
        known = log_snr[1 : highest + 1]
        low = min(1 + int(np.argmin(np.abs(known + 2 * np.log(self.rho_min)))), highest - 1)
        high = max(1 + int(np.argmin(np.abs(known + 2 * np.log(self.rho_max)))), low + 1)
        stretch = [(k, k - 1) for k in range(high, low, -1)]
        return down[: top - low] + stretch * self.times + down[top - low :]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the way up to t from where x is, and of Heun's step."""
        here = Coefs(*(np.concatenate([at_t[:1], at_s[:-1]]) for at_t, at_s in zip(*steps, strict=True)))
        grow, std = Steps(steps.t, here).noising()
        return trapezoid_plan(steps) | {"grow": grow, "noise": std}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s, by a Heun step; the state is empty."""
        c = row.coef
        if noise is not None:
            x = (c["grow"] * x).addcmul(c["noise"], noise)
        return trapezoid_step(denoise, x, row.t, row.s, c, last), state
