"""The network of MyPart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WAVES = 16


class Network(nn.Module):
    """One hidden layer, conditioned on the time by its sines and cosines."""

    def __init__(self, values: int, hidden: int, out_shape: tuple[int, ...]):
        super().__init__()
        self.out_shape = out_shape
        inputs = values + 2 * WAVES
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, math.prod(out_shape)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, out_channels, *S) for x (B, C, *S) and time (B,)."""
        # In float32 whatever the weights are: bfloat16 cannot distinguish a thousand times.
        frequency = 10_000 ** -(torch.arange(WAVES, device=x.device) / WAVES)
        angle = time.float()[:, None] * frequency
        inputs = torch.cat([x.flatten(1), angle.cos().to(x.dtype), angle.sin().to(x.dtype)], 1)
        out: Tensor = self.layers(inputs)
        return out.view(x.shape[0], *self.out_shape)
