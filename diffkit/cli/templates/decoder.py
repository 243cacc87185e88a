"""Real-valued data with heavy tails, under a logistic density.

Usage:

    system = diffkit.compose(decoder="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import Decoder

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MyPart(Decoder):
    """Real-valued data with heavy tails, under a logistic density.

    ``log p = -z - 2 log(1 + exp(-z)) - log s`` with ``z = |x_start - mean| / s`` and s of the Gaussian's variance.

    Source: which paper, which equation.
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
        """Log-density of x_start, nats, of its shape; a pure function of its arguments."""
        log_s = 0.5 * log_variance + math.log(math.sqrt(3) / math.pi)
        z = (x_start - mean).abs() * (-log_s).exp()
        return -z - 2 * (-z).exp().log1p() - log_s
