"""Levels in mirrored pairs: one as far from the clean end as the other from the noisy one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import State, TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("timesteps").register("antithetic")
@frozen
class Antithetic(TimestepSampler):
    """Uniform t for the first half of the batch, ``T + 1 - t`` for the second; weight 1.

    Of a batch of odd size, the row in the middle has no partner.

    Source: Song et al. 2021, arXiv:2010.02502 (the authors' training code draws levels so).
    """

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return antithetic pairs of levels, (B,) int64, and weights of one, (B,) float32."""
        import torch

        mirrored = len(u) // 2
        own = (u[: len(u) - mirrored] * num_steps).long().clamp(max=num_steps - 1) + 1
        t = torch.cat([own, num_steps + 1 - own[:mirrored]])
        return t, t.float().new_ones(t.shape)
