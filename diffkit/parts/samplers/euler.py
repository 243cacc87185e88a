"""Euler's method on the probability-flow ODE."""

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


@registry("sampler").register("euler")
@frozen
class Euler(Sampler):
    """``x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps``, ``rho = sigma / alpha``: eps held over the step.

    The same numbers as DDIM with eta = 0, and, on straight paths, as Euler's method on the velocity.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction.
    Deviates: written in x_start, so that it also starts from a level without signal and holds on any path.
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
