"""DPM-Solver++(2S): second order from two evaluations a step, in x_start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.parts.samplers._coefficients import straight, within
from diffkit.parts.samplers._singlestep import inverse_position, midpoint_plan, midpoint_step
from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("dpmpp_2s")
@frozen
class DPMSolverPP2S(MultistageSampler):
    """``x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) (x_start_t + (x_start_u - x_start_t) / 2r)``.

    u at lambda_t + r h, ``h = lambda_s - lambda_t``; x_u is reached by holding x_start_t. Two evaluations a step,
    one on the last.

    Attributes:
        r: Where in the step the second evaluation is, as a share of h, in (0, 1). 0.5 is the paper's.
    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1.
    Deviates: as 'dpm_solver_2' where a step holds no level of a discrete schedule, and at infinite log-SNR.
    """

    r: float = number(0.5, gt=0, lt=1)
    order: ClassVar[int] = 2

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the second evaluation of each step, (n, 1)."""
        return within(steps, self.r)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of both stages."""
        _, held = straight(*steps)
        return midpoint_plan(steps, held * inverse_position(steps.nodes[0], steps)[1] / 2)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return midpoint_step(denoise, x, row, last), state
