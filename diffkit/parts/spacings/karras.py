"""Evenly in a root of the noise-to-signal ratio: denser at clean levels."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import flag, integer, number
from diffkit.parts.spacings._even import even, noise_ratio
from diffkit.parts.spacings._grid import grid
from diffkit.protocols import GridSpacing
from diffkit.registry import registry
from diffkit.table import F64, ProcessTable, nearest_levels


@registry("spacing").register("karras")
@frozen
class Karras(GridSpacing):
    """Evenly in (sigma / alpha)^(1/rho), from level 1 to T: the larger rho, the denser at clean levels.

    Attributes:
        count: Number of levels.
        rho: Exponent, >= 1; below it most levels would be almost pure noise.
        sigma_min: sigma / alpha of the cleanest level; that of level 1 by default.
        sigma_max: sigma / alpha of the noisiest level; that of level T by default.
        exact: Visit these noise levels themselves, between those of the table, in place of the nearest levels of it.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    count: int = integer(ge=1)
    rho: float = number(7.0, ge=1)
    sigma_min: float | None = number(None, optional=True, gt=0)
    sigma_max: float | None = number(None, optional=True, gt=0)
    exact: bool = flag(False)

    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of the levels, descending."""
        return grid(table, self.count, self.sigma_min, self.sigma_max, self._place)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the nearest levels of the table, ascending."""
        if self.sigma_min is None and self.sigma_max is None:
            return even(noise_ratio(table) ** (1 / self.rho), self.count)
        return nearest_levels(table, self.log_snr(table))

    def _place(self, u: F64, low: float, high: float) -> F64:
        root = 1 / self.rho
        placed: F64 = (low**root + u * (high**root - low**root)) ** self.rho
        return placed
