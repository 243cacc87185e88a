"""PNDM: the classical multistep weights on eps, and DDIM to take the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.parts.samplers._multistep import noise_plan, noise_slopes, noise_step, start_history
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("pndm")
@frozen
class PNDM(Sampler):
    """DDIM's step with ``eps' = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24`` in place of eps (PLMS).

    Weights of fewer estimates on the first three steps. They belong to even steps: the method is of order 2 on grids
    whose steps change size slowly, and of order 1, as declared, on others; 'lms' and 'deis' have weights for any grid.

    Source: Liu et al. 2022, arXiv:2202.09778, the pseudo linear multistep method (PLMS).
    Deviates: the first steps take fewer estimates (as in latent diffusion), where the paper spends further evaluations.
    """

    order: ClassVar[int] = 1

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the three earlier estimates of eps."""
        known = np.minimum(np.arange(steps.num_steps), 3)
        return noise_plan(steps, noise_slopes(steps, _ADAMS_BASHFORTH[known]))

    def init(self, x: Tensor) -> State:
        """Return a history of three estimates, unused on the first step."""
        return start_history(x, 3)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return noise_step(denoise, x, state, row)


_ADAMS_BASHFORTH = np.array([[0, 0, 0], [-1 / 2, 0, 0], [-16 / 12, 5 / 12, 0], [-59 / 24, 37 / 24, -9 / 24]])
"""Weights of (eps_j - eps), j = 1, 2, 3, by how many are known; eps itself has the rest of 1 (Adams and Bashforth)."""
