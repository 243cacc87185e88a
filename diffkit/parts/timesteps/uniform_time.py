"""Times spread evenly over each batch, for a schedule with weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import State, TimeSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("timesteps").register("uniform_time")
@frozen
class UniformTime(TimeSampler):
    """``t_i = (u + i / B) mod 1``, i = 0..B-1: uniform for every row, weight 1.

    Only the first of the uniforms is used, so that a batch covers all times as evenly as its size allows.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
    """

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return times, one from each stratum, (B,) float64, and weights of one, (B,) float32."""
        import torch

        place = torch.arange(len(u), device=u.device, dtype=u.dtype) / max(len(u), 1)
        time = (u[:1] + place) % 1
        return time, time.float().new_ones(time.shape)
