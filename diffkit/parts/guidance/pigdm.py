"""Pseudoinverse-guided diffusion: Bayes' rule for linear measurements with one variance for every value."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.guidance._linear import (
    Measured,
    adjoint_of,
    conjugate_gradients,
    estimate_and_pullback,
    like_rows,
    linear_part,
    residual,
    safe_reach,
)
from diffkit.protocols import Conditions, Estimate, Evaluate, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("pigdm")
@frozen
class PiGDM(Measured):
    """``x_start + sigma^2 / alpha J^T A^T (noise_std^2 + r^2 A A^T)^-1 (y - A x_start)``.

    ``r^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2)`` is the variance of x_start given x_t if data is normal with standard
    deviation s, every value on its own; then the result is the exact mean given x_t and y. At a level without signal,
    where J / alpha is not known, the estimate stays as it is. One backward pass.

    Attributes:
        operator: A, linear: data (B, C, *S) -> measurements (B, *M), each row on its own.
        noise_std: Standard deviation of the measurements' noise, >= 0.
        data_std: s, > 0; 1 is the paper's.
        iterations: Of conjugate gradients, without the network; exact at as many as A A^T has eigenvalues (1 for a
            mask or an average over pixels).
    Source: Song et al. 2023, Pseudoinverse-guided diffusion models for inverse problems (ICLR).
    Deviates: the score becomes a shift of x_start by Tweedie's formula, in place of algorithm 1's weight r^2.
    """

    neutral: ClassVar[tuple[str, float]] = ("noise_std", 1e9)

    noise_std: float = number(0.0, ge=0)
    data_std: float = number(1.0, gt=0)
    iterations: int = integer(10, ge=1)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the mean given x_t and the measurements, by pseudo-inverse guidance."""
        estimate, pullback = estimate_and_pullback(evaluate, x, level, conditions)
        forward, adjoint = linear_part(self.operator), adjoint_of(self.operator, x)
        # everything in units of r^2, which is as small as sigma^2 at low levels
        inverse = 1 / self.data_std**2 + level.alpha**2 / level.sigma**2
        right = residual(self.operator, estimate.x_start, conditions)
        noise = like_rows(inverse, right) * self.noise_std**2
        v = conjugate_gradients(lambda v: noise * v + forward(adjoint(v)), right, self.iterations)
        return estimate.with_x_start(estimate.x_start + safe_reach(level) * inverse * pullback(adjoint(v)))
