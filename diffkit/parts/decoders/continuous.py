"""Real-valued data, such as latents and points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import Decoder
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("decoder").register("continuous")
@frozen
class Continuous(Decoder):
    """Real-valued data (latents, points): the density itself.

    Bits per dimension are then differential, and may be negative.
    """

    @property
    def bins(self) -> None:
        """Data may take any value."""
        return None

    @property
    def bounded(self) -> bool:
        """Data may be anything finite."""
        return False

    def log_prob(self, x_start: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Log-density of x_start, nats."""
        squared = (x_start - mean).square() * (-log_variance).exp()
        return -0.5 * (squared + log_variance + math.log(2 * math.pi))
