"""The module of `uncertainty`: a function of log-SNR that is linear in Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_LARGEST = 40.0
"""Largest absolute log_snr that is told from larger ones; levels without signal have an infinite one."""


class LogError(nn.Module):
    """``u(log_snr) = w . sqrt(2) cos(2 pi (f x + p)) / sqrt(channels)``, ``x = -log_snr / 8``, 0 at first.

    On the variance-exploding path x is ln(sigma) / 4. f are standard normal, p uniform; both are the same in every
    module of so many channels.

    Args:
        channels: Number of features.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, channels: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", torch.randn(channels, generator=generator, device="cpu"))
        self.register_buffer("phase", torch.rand(channels, generator=generator, device="cpu"))
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, log_snr: Tensor) -> Tensor:
        """Return u at values of log_snr, (B,) both."""
        x = -log_snr.to(self.weight.dtype).clamp(-_LARGEST, _LARGEST) / 8
        features = torch.cos(2 * math.pi * (x[:, None] * self.frequency + self.phase))
        scale: float = (2 / len(self.weight)) ** 0.5
        return (features * self.weight).sum(1) * scale
