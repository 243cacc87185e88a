"""Pairs of levels of a table: where the data is, and where a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import PairSampler, State

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class FlowMapLevelPairs(PairSampler):
    """t uniform in 1..T; s uniform in 0..t - 1, and s = t for a share of the rows.

    Attributes:
        equal: Share of rows with s = t, which train the denoiser.
    Source: Geng et al. 2025, arXiv:2505.13447, section 4.3, on a table.
    """

    equal: float = number(0.25, ge=0, le=1)

    def sample(  # type: ignore[override]  # as of the protocol
        self, state: State, u: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return levels t and s, each (B,) int64, and weights of one (B,) float32."""
        import torch

        first, second = u.double().unbind(1)
        t = (first * num_steps).long().clamp(max=num_steps - 1) + 1
        share = ((second - self.equal) / (1 - self.equal)).clamp(min=0) if self.equal < 1 else second
        below = torch.minimum((share * t).long(), t - 1)
        return t, torch.where(second < self.equal, t, below), torch.ones_like(first, dtype=torch.float32)
