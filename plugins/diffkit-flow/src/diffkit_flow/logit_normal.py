"""Training levels in the middle of the path more often than at its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import ContinuousTimestepSampler, State

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 2.0**-54
"""Stands for u = 0, half the spacing of float64 uniforms: the normal quantile of 0 is infinite."""


@frozen
class FlowLogitNormal(ContinuousTimestepSampler):
    """``logit(u) ~ N(mean, std^2)`` with u = sigma / (alpha + sigma), the position on the straight path.

    Attributes:
        mean: Mean of logit(u); above 0 favours noise.
        std: Its standard deviation, > 0 and at most 5.
    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1, eq. 19.
    """

    mean: float = number(0.0, ge=-20, le=20)
    std: float = number(1.0, gt=0, le=5)

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return log_snr = -2 logit (B,) float64 and weights of one (B,) float32."""
        import torch

        logit = self.mean + self.std * torch.special.ndtri(u.double().clamp(min=_SMALLEST))
        return -2 * logit, torch.ones_like(u, dtype=torch.float32)
