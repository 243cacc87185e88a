"""A value that is added to a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    """A parameter plus ``scale`` times another one, which starts at zero."""

    def __init__(self, value: Tensor, scale: float):
        super().__init__()
        self.scale, self.added = scale, nn.Parameter(torch.zeros_like(value))

    def forward(self, value: Tensor) -> Tensor:
        """Return the sum."""
        return value + self.scale * self.added
