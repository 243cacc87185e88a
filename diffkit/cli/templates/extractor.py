"""Means and spreads of random filters, as features of images.

Usage:

    system = diffkit.compose(backbone="mlp", data_shape=(1, 8, 8))
    images = system.sample(4, steps=5, progress=False)
    features = diffkit.evaluation.extractor_for("my_part")(images)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MyPart(nn.Module):
    """Means and spreads of random filters, as features of images.

    Any network is an extractor: it is put into eval mode, its identity is its class and a digest of its weights, and
    what it returns is flattened from the second dimension on.

    Args:
        filters: Number of filters, >= 1.
    Source: which paper, and whose weights.
    """

    weight: Tensor

    def __init__(self, filters: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(filters, 1, 3, 3, generator=generator) / 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 2 filters) for images (B, C, H, W) in [-1, 1]."""
        maps = F.conv2d(images.mean(1, keepdim=True), self.weight)
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)
