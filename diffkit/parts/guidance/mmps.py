"""Moment matching posterior sampling: Bayes' rule for linear measurements with the denoiser's own covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.guidance._linear import (
    Measured,
    adjoint_of,
    conjugate_gradients,
    estimate_and_pullback,
    linear_part,
    residual,
    safe_reach,
)
from diffkit.protocols import Conditions, Estimate, Evaluate, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("mmps")
@frozen
class MMPS(Measured):
    """``x_start + C A^T (noise_std^2 + A C A^T)^-1 (y - A x_start)`` with ``C = sigma^2 / alpha J^T``.

    J is the Jacobian of the estimate by x_t, so C is the covariance of x_start given x_t: for normal data, whatever its
    covariance, this is the exact mean given x_t and y. At a level without signal, where J / alpha is not known, the
    estimate stays as it is. Costs ``iterations + 1`` backward passes of the network.

    Attributes:
        operator: A, linear: data (B, C, *S) -> measurements (B, *M), each row on its own.
        noise_std: Standard deviation of the measurements' noise, > 0.
        iterations: Of conjugate gradients. Few are enough; exact at as many as there are measured values.
    Source: Rozet et al. 2024, arXiv:2405.13712 (moment matching posterior sampling).
    Deviates: conjugate gradients in place of GMRES: the covariance is symmetric up to the network's error.
    """

    neutral: ClassVar[tuple[str, float]] = ("noise_std", 1e9)

    noise_std: float = number(gt=0)
    iterations: int = integer(3, ge=1)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the mean given x_t and the measurements, by moment matching."""
        estimate, pullback = estimate_and_pullback(evaluate, x, level, conditions)
        forward, adjoint, scale = linear_part(self.operator), adjoint_of(self.operator, x), safe_reach(level)

        def covariance(v: Tensor) -> Tensor:
            return self.noise_std**2 * v + forward(scale * pullback(adjoint(v)))

        v = conjugate_gradients(covariance, residual(self.operator, estimate.x_start, conditions), self.iterations)
        return estimate.with_x_start(estimate.x_start + scale * pullback(adjoint(v)))
