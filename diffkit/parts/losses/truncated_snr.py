"""Truncated SNR weighting: the error of eps, with at least the weight of x_start's at every level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.parts.losses._weighting import WeightedSquare, bound_option
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("truncated_snr")
@frozen
class TruncatedSNR(WeightedSquare):
    """Squared error of x_start weighted by ``max(snr, 1)``, the larger of the errors of x_start and eps.

    Attributes:
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4 (truncated SNR weighting).
    """

    vb_weight: float = bound_option()

    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr."""
        return log_snr.clamp(min=0).exp()
