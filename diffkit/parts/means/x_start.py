"""The network predicts the clean data itself."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.registry import registry
from diffkit.table import Coefs


@registry("mean").register("x_start")
@frozen
class XStart(MeanParameterization):
    """Data prediction: ``x_start = F``.

    Source: Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (0, 1, 1)."""
        one = at.sigma**0
        return Scalings(0 * one, one, one)
