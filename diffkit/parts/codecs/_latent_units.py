"""Shift and scale of latents, by which those of an autoencoder get about unit size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diffkit.protocols import AutoencoderCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ScaledAutoencoder(AutoencoderCodec):
    """Base of autoencoders whose module has ``encode(x)``, mean and log-variance, and ``decode(z)``.

    ``latents = (module's - shift) scale``. The module computes in the dtype of its weights.
    """

    scale: float
    shift: float

    def moments(self, x: Tensor, module: nn.Module) -> Tensor:
        """Return mean and log-variance of scaled latents."""
        import torch

        mean, log_variance = self.raw_moments(x.to(dtype_of(module, x)), module).to(x.dtype).chunk(2, 1)
        return torch.cat([(mean - self.shift) * self.scale, log_variance + 2 * math.log(self.scale)], 1)

    def decode(self, z: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        """Return the data of scaled latents."""
        return self.raw_decode((z / self.scale + self.shift).to(dtype_of(module, z)), module).to(z.dtype)

    def raw_moments(self, x: Tensor, module: nn.Module) -> Tensor:
        """Return mean and log-variance as the module has them."""
        found: Tensor = module.encode(x)  # type: ignore[operator]
        return found

    def raw_decode(self, z: Tensor, module: nn.Module) -> Tensor:
        """Return the data of the module's own latents."""
        found: Tensor = module.decode(z)  # type: ignore[operator]
        return found


def dtype_of(module: nn.Module, x: Tensor) -> torch.dtype:
    """Return the dtype of a module's weights; that of x if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
