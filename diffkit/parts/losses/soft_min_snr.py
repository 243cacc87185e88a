"""Soft-min-SNR weighting: a smooth min-SNR."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.parts.losses._weighting import WeightedSquare, bound_option
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("soft_min_snr")
@frozen
class SoftMinSNR(WeightedSquare):
    """Squared error of x_start weighted by ``snr gamma / (snr + gamma)``.

    Attributes:
        gamma: Limit of the weight at clean levels, > 0.
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Crowson et al. 2024, arXiv:2401.11605 (soft-min-SNR); gamma = 4 as there.
    """

    gamma: float = number(4.0, gt=0)
    vb_weight: float = bound_option()

    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr."""
        return self.gamma * (log_snr - math.log(self.gamma)).sigmoid()
