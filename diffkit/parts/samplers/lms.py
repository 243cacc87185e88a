"""Linear multistep: eps extrapolated by a polynomial in rho."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import flag, integer
from diffkit.parts.samplers._coefficients import noise_ratio, step_size
from diffkit.parts.samplers._multistep import (
    noise_carry,
    noise_plan,
    noise_slopes,
    noise_step,
    polynomial_weights,
    relative_steps,
    start_history,
    startup_correction,
)
from diffkit.protocols import Denoise, Sampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("lms")
@frozen
class LMS(Sampler):
    """``x_s / alpha_s = x_t / alpha_t + integral of P(rho) drho``, P the polynomial through the last eps.

    ``rho = sigma / alpha``: Adams and Bashforth's method on steps of any size. Fewer estimates on the first steps, and
    order 1 from a level without signal.

    Attributes:
        estimates: How many of the last estimates are used, 1 to 4.
        corrected_start: Correct the first step once the second estimate is known, since its error would remain. False
            is the textbook method; its order is at most 2, unless eps is nearly constant over the first step.
        lower_order_long: Lower the order of long steps, as below; False is the published method there, too.
        lower_order_final: The last step is of order 1, the one before of order 2 at most, on any grid, as other
            libraries do below 15 steps.
    Source: Zhang & Chen 2022, arXiv:2204.13902 (rho-AB-DEIS); Karras et al. 2022, arXiv:2206.00364, for rho.
    Deviates: estimates are left out as in 'dpmpp_3m'.
    """

    estimates: int = integer(3, ge=1, le=4)
    corrected_start: bool = flag(True)
    lower_order_long: bool = flag(True)
    lower_order_final: bool = flag(False)

    @property
    def order(self) -> int:
        """The number of estimates, at most 3: more do not raise the order, as the error of the first steps remains.

        It is at most 2 with ``lower_order_final`` or without ``corrected_start``.
        """
        return min(self.estimates, 3 if self.corrected_start and not self.lower_order_final else 2)

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of Adams-Bashforth's method in rho (of x_t, x_start and earlier eps)."""
        t, s = steps
        lower = self.lower_order_long, self.lower_order_final
        u = relative_steps(noise_ratio(t), noise_ratio(s), self.estimates - 1, *lower)
        integrals = noise_slopes(
            steps, np.broadcast_to(1 / np.arange(1, self.estimates + 1), (steps.num_steps, self.estimates))
        )
        change = polynomial_weights(u, integrals)
        if self.corrected_start and self.estimates > 2:
            change = startup_correction(change, u, step_size(steps), integrals, noise_carry(steps))
        return noise_plan(steps, change)

    def init(self, x: Tensor) -> State:
        """Return a history, unused on the first step."""
        return start_history(x, self.estimates - 1)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        return noise_step(denoise, x, state, row)
