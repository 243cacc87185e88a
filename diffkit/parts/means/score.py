"""The network predicts the score, the gradient of the log density of noisy data."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import MeanParameterization, Scalings
from diffkit.registry import registry
from diffkit.table import Coefs


@registry("mean").register("score")
@frozen
class Score(MeanParameterization):
    """Score prediction: F estimates the gradient of ``log q(x_t)``, that is ``-eps / sigma``.

    ``x_start = (x_t + sigma^2 F) / alpha``

    Source: Song & Ermon 2019, arXiv:1907.05600, eq. 5; Song et al. 2021, arXiv:2011.13456, eq. 7.
    Deviates: no weight is added, so that the loss 'simple' with ``space="eps"`` is the paper's, weighted by sigma^2.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (1/alpha, sigma^2/alpha, 1)."""
        return Scalings(1 / at.alpha, at.sigma**2 / at.alpha, at.alpha**0)
