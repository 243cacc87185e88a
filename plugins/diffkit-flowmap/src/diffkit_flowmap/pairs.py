"""Pairs of continuous levels: where the data is, and where a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit import OptionError
from diffkit.options import number
from diffkit.protocols import ContinuousTimestepSampler, PairSampler, State
from diffkit_flowmap._levels import log_snr_at

if TYPE_CHECKING:
    from torch import Tensor

_EDGE = 1e-5
"""Positions stay this far from both ends, where log_snr is infinite."""


@frozen
class FlowMapPairs(PairSampler, ContinuousTimestepSampler):
    """Position p of t logit-normal or uniform; that of s uniform below it, and s = t for a share of the rows.

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
    uniform: float = number(0.8, ge=0, le=1)
    equal: float = number(0.2, ge=0, le=1)
    clean: float = number(0.4, ge=0, le=1)

    def __attrs_post_init__(self) -> None:
        """Refuse shares that are more than all rows."""
        if self.equal + self.clean > 1:
            raise OptionError(
                f"and equal={self.equal:g} are more than all rows",
                option="clean",
                value=self.clean,
                fix={"clean": 1 - self.equal},
            )

    def sample(  # type: ignore[override]  # as of the protocol
        self, state: State, u: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log_snr of t and of s, each (B,) float64, and weights of one (B,) float32."""
        import torch

        first, second = u.double().unbind(1)
        flat = first < self.uniform
        share = torch.where(flat, _within(first, 0, self.uniform), _within(first, self.uniform, 1))
        t = torch.where(flat, share, (self.mean + self.std * torch.special.ndtri(share)).sigmoid())
        t = t.clamp(_EDGE, 1 - _EDGE)
        s = t * _within(second, self.equal, 1 - self.clean)
        s = torch.where(second < self.equal, t, torch.where(second < 1 - self.clean, s, 0.0))
        return log_snr_at(t), log_snr_at(s), torch.ones_like(first, dtype=torch.float32)


def _within(u: Tensor, low: float, high: float) -> Tensor:
    """Return where uniforms lie between two bounds, in (0, 1); those outside are clamped."""
    return ((u - low) / max(high - low, _EDGE)).clamp(_EDGE, 1 - _EDGE)
