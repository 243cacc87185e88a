"""Levels as they are drawn: integers of a table, or log_snr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def midpoint(t: Tensor, s: Tensor) -> Tensor:
    """Return the level midway between two: in integers, rounded down, or in ``p = sigma / (alpha + sigma)``.

    Args:
        t, s: Levels 0..T, (B,) int64, or log_snr, (B,) float64; ``log_snr = -2 logit(p)``.
    """
    if not t.is_floating_point():
        return (t + s) // 2
    return log_snr_at(((-t / 2).sigmoid() + (-s / 2).sigmoid()) / 2)


def log_snr_at(position: Tensor) -> Tensor:
    """Return log_snr where ``sigma / (alpha + sigma)`` is ``position``."""
    import torch

    return -2 * torch.logit(position)
