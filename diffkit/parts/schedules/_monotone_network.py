"""The module of `monotone`: a function from [0, 1] onto [0, 1] that rises for any weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LOW = -4.0
"""Logit of the heights at first: the sum of all sigmoids then rises about as much as the straight line."""


class MonotoneNetwork(nn.Module):
    """``g(t) = (f(t) - f(0)) / (f(1) - f(0))``, ``f(t) = t + sum of height_j sigmoid(steepness_j (t - place_j))``.

    Heights are in (0, 1) and steepnesses positive, so that f rises at least as t does.

    Args:
        hidden: Number of sigmoids.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.height = nn.Parameter(torch.full((hidden,), _LOW))
        self.place = nn.Parameter((torch.arange(hidden) + 0.5) / hidden)
        self.steepness = nn.Parameter(torch.full((hidden,), 10.0))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and its derivative at times in [0, 1], (B,), in their dtype."""
        ends = torch.arange(2, dtype=time.dtype, device=time.device)
        height = self.height.to(time.dtype).sigmoid()
        steepness = torch.nn.functional.softplus(self.steepness.to(time.dtype))
        place = self.place.to(time.dtype)
        rise = torch.sigmoid(steepness * (torch.cat([time, ends])[:, None] - place))
        value, (low, high) = (height * rise).sum(1), (height * rise[-2:]).sum(1)
        whole = 1 + high - low
        slope = 1 + (height * steepness * rise * (1 - rise))[:-2].sum(1)
        return (time + value[:-2] - low) / whole, slope / whole
