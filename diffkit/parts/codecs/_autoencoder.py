"""A small convolutional autoencoder: residual blocks, and strides of 2 between its levels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GROUPS = 8


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, the last convolution 0 at first."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        convolution = _CONVOLUTIONS[axes - 1]
        first, last = (convolution(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(norm(channels), nn.SiLU(), first, norm(channels), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the block's own part added."""
        out: Tensor = x + self.layers(x)
        return out


def norm(channels: int) -> nn.Module:
    """Return a group norm of at most 8 groups, of two channels or more, as one value has no norm."""
    most = max(1, min(_GROUPS, channels // 2))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)


class AutoencoderNetwork(nn.Module):
    """Encoder and decoder.

    Args:
        data_channels: Channels of data.
        axes: Number of spatial axes, 1 to 3.
        channels: Width of each level; every level after the first halves the sides.
        latent_channels: Channels of latents.
    """

    def __init__(self, data_channels: int, axes: int, channels: Sequence[int], latent_channels: int):
        super().__init__()
        convolution, first, last = _CONVOLUTIONS[axes - 1], channels[0], channels[-1]
        down: list[nn.Module] = [convolution(data_channels, first, 3, padding=1), ResidualBlock(first, axes)]
        for a, b in itertools.pairwise(channels):
            down += [convolution(a, b, 3, stride=2, padding=1), ResidualBlock(b, axes)]
        self.encoder = nn.Sequential(*down, norm(last), nn.SiLU(), convolution(last, 2 * latent_channels, 1))
        up: list[nn.Module] = [convolution(latent_channels, last, 3, padding=1), ResidualBlock(last, axes)]
        for a, b in itertools.pairwise(reversed(channels)):
            up += [nn.Upsample(scale_factor=2), convolution(a, b, 3, padding=1), ResidualBlock(b, axes)]
        self.decoder = nn.Sequential(*up, norm(first), nn.SiLU(), convolution(first, data_channels, 3, padding=1))

    def encode(self, x: Tensor) -> Tensor:
        """Return mean and log-variance of latents, (B, 2 C, *S)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return torch.cat([mean, log_variance.clamp(-30, 20)], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return data, (B, C, *S)."""
        x: Tensor = self.decoder(z)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return data as it is after encoding to the mean and decoding."""
        return self.decode(self.encode(x).chunk(2, 1)[0])
