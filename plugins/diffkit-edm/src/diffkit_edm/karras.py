"""EDM's noise levels: data plus noise of growing scale, spaced evenly in a root of sigma."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit import OptionError
from diffkit.options import number
from diffkit.protocols import ContinuousSchedule
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class EDMKarras(ContinuousSchedule):
    """``x_t = x_start + sigma eps``, ``sigma_i = (a + i/(T-1) (b - a))^rho`` with a, b the rho-th roots of the ends.

    The network is conditioned on ``ln(sigma) / 4``. A table of one level holds sigma_max.

    Attributes:
        sigma_min: Noise scale of the cleanest level, > 0, in units of data.
        sigma_max: Noise scale that sampling starts from.
        rho: How much denser low noise is visited, > 0; 1 is even spacing.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5 and table 1; defaults from table 1.
    """

    sigma_min: float = number(0.002, gt=0)
    sigma_max: float = number(80.0, gt=0)
    rho: float = number(7.0, gt=0)

    def __attrs_post_init__(self) -> None:
        """Refuse levels that fall."""
        if self.sigma_min >= self.sigma_max:
            raise OptionError(f"sigma_min must be < sigma_max={self.sigma_max:g}, got {self.sigma_min!r}")

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        share = np.linspace(1, 0, num_steps)[::-1]
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ProcessTable.from_sigmas((low + share * (high - low)) ** self.rho, time=lambda sigma: np.log(sigma) / 4)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (total_std, time): sqrt(1 + sigma^2) and ln(sigma) / 4, with ln(sigma) = -log_snr / 2."""
        return (1 + (-log_snr).exp()).sqrt(), -log_snr / 8
