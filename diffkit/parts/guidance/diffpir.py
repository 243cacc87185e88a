"""DiffPIR: each estimate is moved to where it agrees with linear measurements, without a backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.guidance._linear import (
    Measured,
    adjoint_of,
    conjugate_gradients,
    like_rows,
    linear_part,
    residual,
)
from diffkit.protocols import Conditions, Estimate, Evaluate, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("diffpir")
@frozen
class DiffPIR(Measured):
    """The z that minimizes ``|y - A z|^2 / noise_std^2 + |z - x_start|^2 / r^2``, ``r^2 = sigma^2 / (weight alpha^2)``.

    With data_std = s, ``1 / r^2 = weight alpha^2 / sigma^2 + 1 / s^2``: at weight 1 that is the variance of x_start
    given x_t if data is normal with standard deviation s, and z the exact mean given x_t and y. The network is only
    evaluated, never differentiated.

    Attributes:
        operator: A, linear: data (B, C, *S) -> measurements (B, *M), each row on its own.
        noise_std: Standard deviation of the measurements' noise, >= 0.
        weight: The paper's lambda, > 0: how much the estimate counts against the measurements; it uses 1 to 25.
        data_std: s, > 0; None is the paper's, no limit.
        iterations: Of conjugate gradients, as in `pigdm`.
    Source: Zhu et al. 2023, arXiv:2305.08995, algorithm 1; its sampler mixes fresh noise into DDIM, which ``ddim``
        with an eta between 0 and 1 does too.
    """

    neutral: ClassVar[tuple[str, float]] = ("noise_std", 1e9)

    noise_std: float = number(0.0, ge=0)
    weight: float = number(1.0, gt=0)
    data_std: float | None = number(None, optional=True, gt=0)
    iterations: int = integer(10, ge=1)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return DiffPIR's estimate, moved towards the measurements."""
        estimate = evaluate(x, level, conditions)
        forward, adjoint = linear_part(self.operator), adjoint_of(self.operator, x)
        inverse = self.weight * level.alpha**2 / level.sigma**2
        inverse = inverse if self.data_std is None else inverse + 1 / self.data_std**2
        right = residual(self.operator, estimate.x_start, conditions)
        noise = like_rows(inverse, right) * self.noise_std**2
        v = conjugate_gradients(lambda v: noise * v + forward(adjoint(v)), right, self.iterations)
        return estimate.with_x_start(estimate.x_start + adjoint(v))
