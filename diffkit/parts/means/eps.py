"""The network predicts the noise (DDPM, IDDPM)."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.registry import registry
from diffkit.table import Coefs


@registry("mean").register("eps")
@frozen
class Eps(MeanParameterization):
    """Noise prediction: ``x_start = (x_t - sigma F) / alpha``.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 15.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (1/alpha, -sigma/alpha, 1)."""
        return Scalings(1 / at.alpha, -at.sigma / at.alpha, at.alpha**0)
