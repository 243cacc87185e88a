"""DPM-Solver of order 1: the noise held over the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.parts.samplers._singlestep import straight_plan, straight_step
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpm_solver_1")
@frozen
class DPMSolver1(Sampler):
    """``x_s = alpha_s/alpha_t x_t - sigma_s (exp(h) - 1) eps``, ``h = lambda_s - lambda_t``.

    The same numbers as DDIM with eta = 0; here as the first of its family.
    Source: Lu et al. 2022, arXiv:2206.00927, eq. 3.7.
    Deviates: written in x_start, so that it also starts from a level without signal and ends at one without noise.
    """

    order: ClassVar[int] = 1

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t and of x_start."""
        return straight_plan(steps)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return straight_step(denoise, x, row), state
