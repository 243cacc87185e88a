"""Latents of a convolutional autoencoder that was trained before."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import integer, integers, number, word
from diffkit.parts.codecs._latent_units import ScaledAutoencoder
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import nn


@registry("codec").register("autoencoder")
@frozen
class Autoencoder(ScaledAutoencoder):
    """``z = (E(x) - shift) scale`` with an encoder E that halves the sides at each level after the first.

    The frozen module is read from ``folder``, which `diffkit.weights.save_codec` writes; or it is one of your own, of
    the same shape of latents, with methods ``encode(x) -> (B, 2 C, *S)``, mean and log-variance, and ``decode(z)``:
    ``compose(codec=..., modules={"codec": module})``. Without either its weights are random.

    Attributes:
        folder: Where a trained one is; its options are those that were saved.
        latent_channels: Channels of latents.
        channels: Width of each level.
        scale: Factor on latents, 1 over their standard deviation, > 0.
        shift: Mean of the module's latents.
    Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1.
    """

    spatial: ClassVar[bool] = True

    folder: str | None = word(None, optional=True)
    latent_channels: int = integer(4, ge=1)
    channels: tuple[int, ...] = integers((32, 64, 64), ge=1)
    scale: float = number(1.0, gt=0)
    shift: float = number(0.0)

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of latents: sides divided by 2 for each level after the first."""
        factor, sides = 2 ** (len(self.channels) - 1), data_shape[1:]
        if not 1 <= len(sides) <= 3:
            raise OptionError(f"takes data (C, *S) with 1 to 3 axes besides the channels, got shape {data_shape}")
        if any(side % factor for side in sides):
            raise OptionError(f"halves sides {len(self.channels) - 1} times, and {factor} does not divide {sides}")
        return (self.latent_channels, *(side // factor for side in sides))

    def build(self, data_shape: tuple[int, ...]) -> nn.Module:
        """Return the network with random weights."""
        from diffkit.parts.codecs._autoencoder import AutoencoderNetwork

        self.latent_shape(data_shape)
        return AutoencoderNetwork(data_shape[0], len(data_shape) - 1, self.channels, self.latent_channels)
