"""Karras et al.'s form of DPM-Solver-2: a midpoint step in log sigma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import flag
from diffkit.parts.samplers._coefficients import within
from diffkit.parts.samplers._singlestep import midpoint_plan_in_noise, midpoint_step
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpm2")
@frozen
class DPM2(MultistageSampler):
    """``x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps_u``, ``rho_u = sqrt(rho_t rho_s)``, x_u by an Euler step.

    Two evaluations a step, one on the last. The same numbers as 'dpm_solver_2' with r = 0.5; without its noise, this is
    'dpm2_ancestral'.

    Attributes:
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1, in the variable rho of Karras et al. 2022, arXiv:2206.00364.
    Deviates: as 'dpm_solver_2' where a step is long or holds no level, and at infinite log-SNR.
    """

    lower_order_long: bool = flag(True)
    order: ClassVar[int] = 2

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the middle of each step, (n, 1)."""
        return within(steps, 0.5)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of both stages."""
        return midpoint_plan_in_noise(steps, self.lower_order_long)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return midpoint_step(denoise, x, row, last), state
