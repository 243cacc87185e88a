"""Pairs of continuous levels: where the data is, and where a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import ContinuousTimestepSampler, PairSampler, State
from diffkit_flowmap._levels import log_snr_at

if TYPE_CHECKING:
    from torch import Tensor

_EDGE = 1e-5
"""Positions stay this far from both ends, where log_snr is infinite."""


@frozen
class FlowMapPairs(PairSampler, ContinuousTimestepSampler):
    """Position p of t from a mix of logit-normal and uniform; that of s uniform below it; s = t for a share of the rows.

    ``p = sigma / (alpha + sigma)``, the position on the straight path.

    Attributes:
        mean: Mean of logit(p) of the logit-normal part.
        std: Its standard deviation.
        uniform: Share of rows whose p is uniform in (0, 1); without, few rows begin at pure noise.
        equal: Share of rows with s = t, which train the denoiser.
        clean: Share of rows with s = 0, clean data.
    Source: Geng et al. 2025, arXiv:2505.13447, section 4.3: two logit-normal draws, the larger of which is t.
    Deviates: s is uniform below t, and a share of the rows goes all the way, as one step does.
    """

    mean: float = number(0.0, ge=-20, le=20)
    std: float = number(1.0, gt=0, le=5)
    uniform: float = number(0.5, ge=0, le=1)
    equal: float = number(0.25, ge=0, le=1)
    clean: float = number(0.0, ge=0, le=1)

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log_snr of t and of s, each (B,) float64, and weights of one (B,) float32."""
        import torch

        first, second = u.double().unbind(1)
        is_uniform = first < self.uniform
        spread = torch.where(is_uniform, first / max(self.uniform, _EDGE), (first - self.uniform) / max(1 - self.uniform, _EDGE))
        spread = spread.clamp(_EDGE, 1 - _EDGE)
        normal = (self.mean + self.std * torch.special.ndtri(spread)).sigmoid()
        t = torch.where(is_uniform, spread, normal).clamp(_EDGE, 1 - _EDGE)
        below = ((second - self.equal) / max(1 - self.equal - self.clean, _EDGE)).clamp(0, 1)
        s = torch.where(second < self.equal, t, torch.where(second >= 1 - self.clean, 0.0, t * below))
        return log_snr_at(t), torch.where(s == t, log_snr_at(t), log_snr_at(s)), torch.ones_like(first, dtype=torch.float32)
