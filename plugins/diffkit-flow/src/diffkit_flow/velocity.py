"""The network predicts the velocity along the straight path."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.table import Coefs


@frozen
class Flow(MeanParameterization):
    """Velocity prediction: F stands for ``eps - x_start``, the derivative of x_u by u on the straight path.

    ``x_start = (x_t - sigma F) / (alpha + sigma)``

    Source: Liu et al. 2022, arXiv:2209.03003, eq. 1; Lipman et al. 2022, arXiv:2210.02747, eq. 23.
    Deviates: divided by alpha + sigma, which is 1 on the straight path, so that it holds on any; the sign is that of
    time from data to noise.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (1/d, -sigma/d, 1), d = alpha + sigma."""
        d = at.alpha + at.sigma
        return Scalings(1 / d, -at.sigma / d, d**0)
