"""EDM's training levels: the log of sigma is normal."""

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
class EDMLogNormal(ContinuousTimestepSampler):
    """``ln(sigma / alpha) ~ N(mean, std^2)``: most effort where noise is neither negligible nor all there is.

    Attributes:
        mean: Mean of ln(sigma / alpha), at most 20 in size.
        std: Its standard deviation, > 0 and at most 5.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and section 5.
    """

    mean: float = number(-1.2, ge=-20, le=20)
    std: float = number(1.2, gt=0, le=5)

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return log_snr (B,) float64 and weights of one (B,) float32."""
        import torch

        log_sigma = self.mean + self.std * torch.special.ndtri(u.double().clamp(min=_SMALLEST))
        return -2 * log_sigma, torch.ones_like(u, dtype=torch.float32)
