"""Small networks for tests of the core."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    """One convolution, its output shifted by the time; any number of spatial axes."""

    def __init__(self, channels: int, out_channels: int, axes: int = 2):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.convolution = convolution(channels, out_channels, 3, padding=1)
        self.shift = nn.Parameter(torch.tensor([0.1]))

    def forward(self, x, time, y=None):
        extra = 0 if y is None else y.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return (
            self.convolution(x) + self.shift[0] * (time / 1000).to(x.dtype).view(-1, *(1,) * (x.ndim - 1)) + 0.1 * extra
        )
