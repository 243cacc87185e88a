"""DDIM: the deterministic path of the same marginals, or any mix of it with fresh noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import flag, number
from diffkit.parts.samplers._singlestep import straight_step
from diffkit.parts.samplers._stochastic import fresh_std
from diffkit.protocols import Denoise, State, StepRow, UnclippedPrediction, UnclippedSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("ddim")
@frozen
class DDIM(UnclippedSampler):
    """``x_s = alpha_s x_start + sqrt(sigma_s^2 - std^2) eps + std noise``, eps re-derived from x_start and x_t.

    ``std = eta sigma_s sqrt(1 - snr_t / snr_s)``; a learned variance is not used.

    Attributes:
        eta: Stochasticity in [0, 1]. 0 is deterministic, 1 has the posterior's variance.
        clipped_eps: Compute eps from the estimate of x_start after clipping; False is the network's own eps, as in
            diffusers with ``use_clipped_model_output=False``. The same where nothing is clipped.
    Source: Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16.
    Deviates: written with SNR ratios, so that it is also valid on paths that are not variance-preserving. Computed in
    float64: at eta = 1 improved-diffusion takes the square root of a negative rounding error.
    """

    eta: float = number(0.0, ge=0, le=1)
    clipped_eps: bool = flag(True)
    order: ClassVar[int] = 1

    @property
    def reads_unclipped(self) -> bool:
        """True if eps is the network's own."""
        return not self.clipped_eps

    @property
    def stochastic(self) -> bool:
        """True if any noise is added."""
        return self.eta > 0

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return DDIM's coefficients of x_t, of x_start and, if stochastic, of the noise."""
        t, s = steps
        std = fresh_std(steps, self.eta) if self.stochastic else np.zeros_like(s.sigma)
        carry = np.sqrt(np.maximum(s.sigma**2 - std**2, 0)) / t.sigma
        plan = {"x": carry, "x_start": s.alpha - carry * t.alpha}
        if not self.clipped_eps:
            plan |= {"x_start": s.alpha, "unclipped": -carry * t.alpha}
        return plan | {"noise": std} if self.stochastic else plan

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        y = straight_step(denoise, x, row) if self.clipped_eps else _step_by_own_eps(denoise, x, row)
        return (y if noise is None else y.addcmul_(row.coef["noise"], noise)), state


def _step_by_own_eps(denoise: Denoise, x: Tensor, row: StepRow) -> Tensor:
    c, prediction = row.coef, denoise(x, row.t)
    own = prediction.unclipped if isinstance(prediction, UnclippedPrediction) else prediction.x_start
    return (c["x"] * x).addcmul_(c["x_start"], prediction.x_start).addcmul_(c["unclipped"], own)
