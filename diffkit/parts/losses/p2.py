"""P2 weighting: less weight on clean levels, where only imperceptible detail is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.parts.losses._weighting import WeightedSquare, bound_option
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("p2")
@frozen
class P2(WeightedSquare):
    """Squared error of eps weighted by ``1 / (k + snr)^gamma``; of x_start, by ``snr / (k + snr)^gamma``.

    Attributes:
        gamma: Reduction of the weight of clean levels, >= 0; 0 is the plain error of eps.
        k: Bound on the weight of noisy levels, > 0: at most k^-gamma.
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Choi et al. 2022, arXiv:2204.00227 (the weight lambda-prime); k = 1 and gamma = 1 as in its experiments.
    """

    gamma: float = number(1.0, ge=0)
    k: float = number(1.0, gt=0)
    vb_weight: float = bound_option()

    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr."""
        snr = log_snr.exp()
        return snr * (self.k + snr) ** -self.gamma
