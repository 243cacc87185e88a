"""A feature network with everything an extractor can have, and images for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from diffkit.evaluation import Features


class StandIn(nn.Module):
    """Fixed random features of images (B, C, H, W): 6 pooled, 8 spatial, 5 classes."""

    def __init__(self, seed: int = 0, channels: int = 3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(6, channels, 3, 3, generator=generator))
        self.head = nn.Parameter(torch.randn(5, 6, generator=generator))

    def forward(self, x):
        maps = torch.nn.functional.conv2d(x, self.weight).relu()
        pool = maps.mean((2, 3))
        return Features(pool, maps[:, :2, :2, :2].flatten(1), pool @ self.head.T)


class StandInExtractor:
    """The same as an extractor of its own, made without arguments."""

    name = "stand_in"

    def __init__(self):
        self.network = StandIn()

    @property
    def identity(self):
        return {"extractor": self.name, "version": 1}

    def __call__(self, images):
        return self.network(images)


def images(count: int, seed: int = 0, *, channels: int = 3, shift: int = 0) -> np.ndarray:
    """(N, H, W, C) uint8."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.integers(0, 200, (count, 7, 9, channels)) + shift, 0, 255).astype(np.uint8)
