"""diffusers' DDIM, which may end short of clean data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit_diffusers._ends import ended
from diffkit_diffusers._straight import straight_plan, straight_step

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class DiffusersDDIM(Sampler):
    """DDIM whose last step goes to ``final_alpha_bar`` in place of clean data.

    ``set_alpha_to_one=False`` in a DDIMScheduler means the alpha_bar of level 1 there: what Stable Diffusion does. With
    1 it is sampler='ddim'.

    Attributes:
        eta: Stochasticity in [0, 1].
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1]; at least that of the level it starts from.
    Source: Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16; the end as in diffusers' DDIMScheduler.
    Deviates: where x_start is clipped, the noise is re-derived from it (``use_clipped_model_output=True``).
    """

    eta: float = number(0.0, ge=0, le=1)
    final_alpha_bar: float = number(1.0, gt=0, le=1)
    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.eta > 0

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the noise."""
        t, s = ended(steps, self.final_alpha_bar)
        std = self.eta * s.sigma * np.sqrt(-np.expm1(np.minimum(t.log_snr - s.log_snr, 0)))
        return straight_plan(t, s, std)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return straight_step(denoise, x, row, noise), state
