"""Velocities of libraries whose time runs to the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from diffkit_adopt._levels import along

Scales = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class EstimateOfVelocity(nn.Module):
    """A velocity ``alpha' x_start + sigma' eps`` as the estimate of clean data, on any path.

    Attributes:
        model: ``model(x, t, **conditions)``; a module's weights are the network's.
        scales: Function of time that returns alpha, sigma and their rates.
    """

    def __init__(self, model: Callable[..., Tensor], scales: Scales):
        super().__init__()
        self.model, self.scales = model, scales

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return ``(sigma' x - sigma velocity) / (sigma' alpha - sigma alpha')``."""
        time = time.to(x.dtype)
        alpha, sigma, alpha_rate, sigma_rate = (along(scale, x) for scale in self.scales(time))
        velocity = self.model(x, time, **conditions)
        return (sigma_rate * x - sigma * velocity) / (sigma_rate * alpha - sigma * alpha_rate)
