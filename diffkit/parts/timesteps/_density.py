"""Levels drawn in proportion to given probabilities, with the importance weights that keep the loss unbiased."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def draw(p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return levels 1..T (B,) int64 and weights 1 / (T p) (B,) float32.

    Args:
        p: Probability of each level, (T,) float64, > 0, on u's device.
        u: Uniforms in [0, 1), (B,) float64.
    """
    import torch

    p = p.to(u.device)
    cumulative = p.cumsum(0)
    i = torch.searchsorted(cumulative / cumulative[-1], u, right=True).clamp(max=len(p) - 1)
    return i + 1, (cumulative[-1] / (len(p) * p[i])).float()


def by_size(size: Tensor, uniform_prob: float, warm: Tensor) -> Tensor:
    """Return probabilities in proportion to sizes mixed with the uniform, (T,) float64; all uniform until warm.

    Args:
        size: Relative frequency of each level, (T,) float64, >= 0.
        uniform_prob: Share of the uniform distribution, in (0, 1].
        warm: Whether the sizes are used, a bool tensor of no dimensions.
    """
    uniform = size.new_full(size.shape, 1 / len(size))
    share = size / size.sum().clamp(min=1e-300)  # all sizes zero: fall back to the uniform part alone
    return ((1 - uniform_prob) * share + uniform_prob * uniform).where(warm, uniform)


def between(edges: Tensor) -> Tensor:
    """Probability of each level from the cumulative distribution at 0, 1/T, ..., 1, (T+1,) -> (T,)."""
    return edges.diff().clamp(min=0)
