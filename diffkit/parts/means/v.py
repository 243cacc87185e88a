"""The network predicts the velocity, a mix of noise and data that stays well scaled at every level."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.registry import registry
from diffkit.table import Coefs


@registry("mean").register("v")
@frozen
class V(MeanParameterization):
    """Velocity prediction: F estimates ``alpha eps - sigma x_start``.

    ``x_start = (alpha x_t - sigma F) / (alpha^2 + sigma^2)``

    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4.
    Deviates: divided by alpha^2 + sigma^2, which is 1 in the paper, so that it holds off the variance-preserving path.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (alpha/d, -sigma/d, 1), d = alpha^2 + sigma^2."""
        d = at.alpha**2 + at.sigma**2
        return Scalings(at.alpha / d, -at.sigma / d, d**0)
