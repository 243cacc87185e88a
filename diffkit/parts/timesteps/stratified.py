"""Levels spread evenly over each batch, at one random offset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import State, TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("timesteps").register("stratified")
@frozen
class Stratified(TimestepSampler):
    """``t_i = floor(T ((u + i / B) mod 1)) + 1``, i = 0..B-1: p(t) = 1/T for every row, weight 1.

    Only the first of the uniforms is used. A batch covers all levels as evenly as its size allows, which makes the
    average of the loss over it less noisy than independent draws.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
    """

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels, one from each stratum, (B,) int64, and weights of one, (B,) float32."""
        import torch

        place = torch.arange(len(u), device=u.device, dtype=u.dtype) / max(len(u), 1)
        shifted = (u[:1] + place) % 1
        t = (shifted * num_steps).long().clamp(max=num_steps - 1) + 1
        return t, t.float().new_ones(t.shape)
