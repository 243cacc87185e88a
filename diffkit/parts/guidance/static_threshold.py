"""A threshold: clips the estimate to a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Conditions, Estimate, Evaluate, Guidance, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("static_threshold")
@frozen
class StaticThreshold(Guidance):
    """Clip the estimate of x_start to [-limit, limit].

    Like ``clip_x_start``, but for another range or at another position among several guidances.

    Attributes:
        limit: Largest magnitude, > 0.
    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """

    neutral: ClassVar[tuple[str, float]] = ("limit", 1e9)

    limit: float = number(1.0, gt=0)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate within [-limit, limit]."""
        estimate = evaluate(x, level, conditions)
        return estimate.with_x_start(estimate.x_start.clamp(-self.limit, self.limit))
