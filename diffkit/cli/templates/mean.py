"""The network predicts the noise as it stands in x_t, sigma eps.

Usage:

    system = diffkit.compose(mean="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.table import Coefs


@frozen
class MyPart(MeanParameterization):
    """The network predicts the noise as it stands in x_t, sigma eps.

    ``x_start = c_skip x_t + c_out F(c_in x_t)`` defines it; the training target follows from it.

    Source: which paper, which equation.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (1/alpha, -1/alpha, 1)."""
        return Scalings(1 / at.alpha, -1 / at.alpha, at.alpha**0)
