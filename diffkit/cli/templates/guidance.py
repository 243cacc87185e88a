"""Move the mean of each example towards a value.

Usage:

    system = diffkit.compose(backbone="mlp", data_shape=(1, 8, 8))
    samples = system.sample(4, steps=5, guidance="my_part", progress=False)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Conditions, Estimate, Evaluate, Guidance, Level

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MyPart(Guidance):
    """Move the mean of each example towards a value.

    ``x_start + scale (value - mean(x_start))``

    Attributes:
        scale: Share of the way to the value; 0 changes nothing.
        value: Where the mean goes.
    Source: which paper, which equation.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 0.0)

    scale: float = number(0.5)
    value: float = number(0.0)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the moved estimate; a pure function, each row on its own."""
        estimate = evaluate(x, level, conditions)
        axes = tuple(range(1, x.ndim))
        mean = estimate.x_start.mean(axes, keepdim=True)
        return estimate.with_x_start(estimate.x_start + self.scale * (self.value - mean))
