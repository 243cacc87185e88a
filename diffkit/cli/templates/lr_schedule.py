"""The learning rate falls as a power of the share of the run that is left.

Usage:

    data = diffkit.data.load("points", examples=64)
    system = diffkit.compose(backbone="mlp", data_shape=data.shape, bins=data.bins)
    diffkit.train(system, data, out="runs/my_part", steps=4, batch_size=8, lr_schedule=("my_part", {"power": 3}))
"""

from __future__ import annotations

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import LRSchedule

__all__ = ["MyPart"]


@frozen
class MyPart(LRSchedule):
    """The learning rate falls as a power of the share of the run that is left.

    factor = (1 - step / steps)^power

    Attributes:
        power: > 0; 1 is a linear fall.
    Source: which paper, which equation.
    """

    power: float = number(2.0, gt=0)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate of the update after ``step`` of ``steps`` in all."""
        return float((1 - step / steps) ** self.power)
