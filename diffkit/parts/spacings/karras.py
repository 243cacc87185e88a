"""Evenly in a root of the noise-to-signal ratio: denser at clean levels."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.spacings._even import even, noise_ratio
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("karras")
@frozen
class Karras(LevelSpacing):
    """Evenly in (sigma / alpha)^(1/rho), from level 1 to T: the larger rho, the denser at clean levels.

    Attributes:
        count: Number of levels.
        rho: Exponent, >= 1; below it most levels would be almost pure noise.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    count: int = integer(ge=1)
    rho: float = number(7.0, ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        return even(noise_ratio(table) ** (1 / self.rho), self.count)
