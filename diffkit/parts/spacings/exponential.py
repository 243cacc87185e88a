"""Evenly in the logarithm of the noise-to-signal ratio, between the levels of the table."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.options import flag, integer, number
from diffkit.parts.spacings._grid import grid
from diffkit.protocols import GridSpacing
from diffkit.registry import registry
from diffkit.table import F64, ProcessTable


@registry("spacing").register("exponential")
@frozen
class Exponential(GridSpacing):
    """``log(sigma / alpha)`` at shares ``u^rho`` of the way from the cleanest level to the noisiest, u even in [0, 1].

    With rho = 1 they are even in log_snr, which is how Lu et al. 2022 (DPM-Solver) place them.

    Attributes:
        count: Number of levels.
        rho: Exponent, > 0: above 1 denser at clean levels.
        sigma_min: sigma / alpha of the cleanest level; that of level 1 by default.
        sigma_max: sigma / alpha of the noisiest level; that of level T by default.
        exact: Visit these noise levels themselves, between those of the table; False visits the nearest levels of it.
    Source: Lu et al. 2022, arXiv:2206.00927, section 3.4; rho is that of k-diffusion's `get_sigmas_polyexponential`.
    """

    count: int = integer(ge=1)
    rho: float = number(1.0, gt=0)
    sigma_min: float | None = number(None, optional=True, gt=0)
    sigma_max: float | None = number(None, optional=True, gt=0)
    exact: bool = flag(True)

    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of the levels, descending."""
        return grid(table, self.count, self.sigma_min, self.sigma_max, self._place)

    def _place(self, u: F64, low: float, high: float) -> F64:
        return np.asarray(np.exp(np.log(low) + u**self.rho * (np.log(high) - np.log(low))))
