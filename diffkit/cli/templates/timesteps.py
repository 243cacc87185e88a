"""Levels drawn more often from one end of the chain.

Usage:

    system = diffkit.compose(timesteps="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import State, TimestepSampler

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MyPart(TimestepSampler):
    """Levels drawn more often from one end of the chain.

    ``t = ceil(T u^power)``, so ``p(t) = (t/T)^(1/power) - ((t-1)/T)^(1/power)``, and the weight is 1 / (T p(t)).

    Attributes:
        power: Above 1 favours low levels, below 1 high ones; > 0.
    Source: which paper, which equation.
    """

    power: float = number(1.5, gt=0)

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels 1..T, (B,) int64, and weights, (B,) float32."""
        t = (num_steps * u**self.power).long().clamp(max=num_steps - 1) + 1
        share = (t / num_steps).double() ** (1 / self.power) - ((t - 1) / num_steps).double() ** (1 / self.power)
        return t, (1 / (num_steps * share)).float()
