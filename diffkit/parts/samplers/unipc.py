"""UniPC: a predictor over the last estimates, corrected by the next one without a further evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer
from diffkit.parts.samplers._coefficients import finite_or_zero, moments, step_size, straight
from diffkit.parts.samplers._multistep import (
    data_plan,
    data_step,
    lowered_at_end,
    midpoint_slope,
    polynomial_weights,
    relative_steps,
    start_history,
)
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps

_MAX_UNBOUNDED_STEP = 2.0
"""From here on (in lambda) "bh1" is "bh2", which does not grow with the step."""
_LONG = 1.0
"""A first step up of more than this (in lambda) is not corrected: round trips are 2 to 6 times better without."""


@registry("sampler").register("unipc")
@frozen
class UniPC(Sampler):
    """``x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) D + sum_j v_j (D_j - D)``, ``sum_j v_j u_j^k = alpha_s m_k``.

    D is x_start at t, D_j at the levels before (the predictor), and at s as well (the corrector), u_j where they lie in
    steps from t. The corrector of a step uses the estimate that the next step starts with, so it costs no evaluation,
    and is folded into that step's coefficients. With one difference, v = B / 2u. The last step is of order 1.

    Attributes:
        estimates: Number of the last estimates that the predictor uses, 1 to 3 (UniPC-p of the paper); the corrector
            has one more.
        variant: B is "bh1", ``alpha_s h``, or "bh2", ``alpha_s (1 - exp(-h))``, which the paper prefers with guidance.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
        lower_order_final: The predictor is of order 1 on the last step and of order 2 at most on the one before, on any
            grid, as in the authors' code.
    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, predicting data; warm-up as there.
    Deviates: the predictor has its full order up to the step before the last, where the authors' code lowers it
    earlier; estimates that a long step would extend too far are left out.
    """

    estimates: int = integer(2, ge=1, le=3)
    variant: str = choice("bh2", ("bh1", "bh2"))
    lower_order_long: bool = flag(True)
    lower_order_final: bool = flag(False)

    @property
    def order(self) -> int:
        """One more than the estimates, as corrected, but at most 3: the first steps leave an error of that order.

        It is 2 with ``lower_order_final``, as a last step of order 1 leaves an error of that order.
        """
        return min(self.estimates + 1, 2 if self.lower_order_final else 3)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return UniPC's coefficients of x_t, of x_start and of the earlier estimates."""
        t, s = steps
        h = step_size(steps)
        carry, held = straight(t, s)
        u = relative_steps(t.log_snr, s.log_snr, self.estimates, lower_order_long=self.lower_order_long)
        integrals = s.alpha[:, None] * moments(h, self.estimates + 1)
        bounded = np.abs(h) < _MAX_UNBOUNDED_STEP if self.lower_order_long else np.isfinite(h)
        amount = np.where(bounded, s.alpha * finite_or_zero(h), held) if self.variant == "bh1" else held
        predictor = self._weights(
            lowered_at_end(u[:, :-1]) if self.lower_order_final else u[:, :-1], integrals[:, :-1], amount
        )
        # The corrector's further estimate lies at u = 1, before all others in the order of `polynomial_weights`.
        corrector = self._weights(np.concatenate([np.ones_like(h)[:, None], u[:, :-1]], axis=1), integrals, amount)
        # In encoding, a long first step would multiply the estimate at its end by exp(-h); it is not corrected.
        risky = np.isnan(u[:, 0]) & (h < -_LONG) & self.lower_order_long
        corrector = np.where((np.isfinite(h) & ~risky)[:, None], corrector, 0.0)
        return data_plan(steps, _with_correction(predictor, corrector, carry, u))

    def init(self, x: Tensor) -> State:
        """Return a history, unused on the first step."""
        return start_history(x, self.estimates)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return data_step(denoise, x, state, row)

    def _weights(self, u: F64, integrals: F64, amount: F64) -> F64:
        """Weights of (D_j - D), (n, J): exact integrals, but for a single difference."""
        exact = polynomial_weights(u, integrals)
        single = np.isfinite(u).sum(axis=1) == 1
        exact[single, :1] = midpoint_slope(u[single, :1], amount[single])
        return exact


def _with_correction(predictor: F64, corrector: F64, carry: F64, u: F64) -> F64:
    """Weights of (D_j - D), (n, J+1), of the predictor from a corrected x_t.

    Args:
        predictor: Weights (n, J) of the earlier estimates in the step from t.
        corrector: Weights (n, J+1): of the estimate at s, then of the earlier ones.
        carry: What a change of x_t changes in x_s.
    """
    out = np.zeros((len(predictor), predictor.shape[1] + 1))
    out[:, :-1] = predictor
    # Of the step before: the difference at its end, and what the earlier estimates weigh otherwise than they did.
    at_end, earlier = corrector[:-1, 0], corrector[:-1, 1:] - predictor[:-1]
    # There D was this step's D_1: (D_j - D_1) = (D_j - D) - (D_1 - D).
    out[1:, 1:] += carry[1:, None] * earlier
    out[1:, 0] -= carry[1:] * (at_end + earlier.sum(axis=1))
    return out
