"""SNR + 1 weighting: the plain squared error of v, for every mean parameterization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.parts.losses._weighting import WeightedSquare, bound_option
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("snr_plus_one")
@frozen
class SNRPlusOne(WeightedSquare):
    """Squared error of x_start weighted by ``snr + 1``, that of eps by ``1 + 1 / snr``.

    The sum of the errors of x_start and eps; on a variance-preserving path, the error of v.

    Attributes:
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4 (SNR + 1 weighting).
    """

    vb_weight: float = bound_option()

    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr."""
        return log_snr.exp() + 1
