"""At quantiles of a beta distribution, between the levels of the table: dense at both ends."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.options import choice, flag, integer, number
from diffkit.parts.spacings._beta_distribution import even_quantiles
from diffkit.parts.spacings._grid import grid
from diffkit.protocols import GridSpacing
from diffkit.registry import registry
from diffkit.table import F64, ProcessTable, interpolated_levels


@registry("spacing").register("beta")
@frozen
class BetaQuantiles(GridSpacing):
    """At even quantiles of Beta(a, b), stretched from the cleanest level to the noisiest: below 1 dense at both ends.

    Attributes:
        count: Number of levels.
        a: Shape at the clean end, > 0; the smaller, the denser there.
        b: Shape at the noisy end, > 0.
        measure: What is stretched: "level" is the number of the level, as in the paper, "sigma" is sigma / alpha, as in
            diffusers.
        sigma_min: sigma / alpha of the cleanest level; that of level 1 by default.
        sigma_max: sigma / alpha of the noisiest level; that of level T by default.
        exact: Visit these noise levels themselves, between those of the table; False visits the nearest levels of it.
    Source: Lee et al. 2024, arXiv:2407.12173, section 3.3.
    """

    count: int = integer(ge=1)
    a: float = number(0.6, gt=0)
    b: float = number(0.6, gt=0)
    measure: str = choice("level", ("level", "sigma"))
    sigma_min: float | None = number(None, optional=True, gt=0)
    sigma_max: float | None = number(None, optional=True, gt=0)
    exact: bool = flag(True)

    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of the levels, descending."""

        def place(u: F64, low: float, high: float) -> F64:
            share = even_quantiles(len(u), self.a, self.b) if len(u) > 1 else u
            if self.measure == "sigma":
                return np.asarray(low + share * (high - low))
            first, last = interpolated_levels(table, -2 * np.log([low, high])).position
            known = table.log_snr[1:]
            ends = np.isfinite(known).sum()
            at = np.interp(first + share * (last - first), np.arange(1, ends + 1), known[:ends])
            return np.asarray(np.exp(-at / 2))

        return grid(table, self.count, self.sigma_min, self.sigma_max, place)
