"""EDM's preconditioning: network input and target have unit variance at every noise level."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import MeanParameterization, Scalings
from diffkit.table import Coefs


@frozen
class EDM(MeanParameterization):
    """``x_start = c_skip x_t + c_out F(c_in x_t)``, a mix of noise and data that errors of F disturb least.

    With d = sigma^2 + alpha^2 sigma_data^2:
    c_skip = alpha sigma_data^2 / d, c_out = sigma sigma_data / sqrt(d), c_in = 1 / sqrt(d).

    Attributes:
        sigma_data: Standard deviation of clean data, > 0.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    Deviates: alpha, which is 1 in the paper, is carried along, so that it holds on any path.
    """

    sigma_data: float = number(0.5, gt=0)

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (c_skip, c_out, c_in)."""
        variance = self.sigma_data**2
        d = at.sigma**2 + at.alpha**2 * variance
        return Scalings(at.alpha * variance / d, at.sigma * self.sigma_data / d**0.5, d**-0.5)
