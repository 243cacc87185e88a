"""Heun's method on the probability-flow ODE: Euler, then the mean of both ends' slopes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import flag
from diffkit.parts.samplers._singlestep import trapezoid_plan, trapezoid_step
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("heun")
@frozen
class Heun(MultistageSampler):
    """``x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) (eps_t + eps_s) / 2``, eps_s from an Euler step.

    In x_start: ``x_s = euler + alpha_s (exp(h) - 1) / 2 (x_start(euler) - x_start(x_t))``, ``h = lambda_s - lambda_t``.
    Two evaluations a step; one on the last, which ends at level 0, where the network is not defined; the first from a
    level without signal is of order 1.

    Attributes:
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    Deviates: the paper's is for any time; here the variable is rho, the paper's own choice, on every path. Steps of
    h >= 4, such as the first one of a cosine schedule, weigh the difference by its exact integral in log-SNR, below 1.
    """

    lower_order_long: bool = flag(True)
    order: ClassVar[int] = 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of the Euler step, and of the difference of estimates."""
        return trapezoid_plan(steps, self.lower_order_long)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return trapezoid_step(denoise, x, row.t, row.s, row.coef, last), state
