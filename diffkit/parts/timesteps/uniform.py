"""Every level equally often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import State, TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("timesteps").register("uniform")
@frozen
class Uniform(TimestepSampler):
    """``p(t) = 1/T``, weight 1.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 1.
    """

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels (B,) int64 and weights of one (B,) float32."""
        t = (u * num_steps).long() + 1
        return t, t.float().new_ones(t.shape)
