"""A low-rank addition to the weight of a layer, as a parametrization: the layer stays what it is, under its name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weight can have one."""


class LowRank(nn.Module):
    """The weight plus ``scale B A``; B starts at zero.

    Args:
        weight: That of the layer, (out, in, *kernel).
        r: Rank.
        scale: Factor of the product.
    Attributes:
        lora_A: (r, in, *kernel), at first uniform as the weights of a new layer.
        lora_B: (out, r, *1), at first zero.
    """

    def __init__(self, weight: Tensor, r: int, scale: float):
        super().__init__()
        self.scale = scale
        first, last = torch.empty(r, *weight.shape[1:]), torch.zeros(weight.shape[0], r, *(1 for _ in weight.shape[2:]))
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))  # as torch initializes linear layers and convolutions
        self.lora_A, self.lora_B = nn.Parameter(first.to(weight)), nn.Parameter(last.to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum, in the shape of the weight."""
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        return weight + self.scale * product.view_as(weight)
