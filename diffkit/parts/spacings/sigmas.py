"""Noise levels of your own, between the levels of the table."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import flag, numbers
from diffkit.protocols import GridSpacing
from diffkit.registry import registry
from diffkit.table import F64, ProcessTable


@registry("spacing").register("sigmas")
@frozen
class Sigmas(GridSpacing):
    """These values of sigma / alpha.

    Attributes:
        values: sigma / alpha of each level, in any order; a 0 is level 0, and left out.
        times: What the network is conditioned on at each of the values; by default the table's, interpolated.
        exact: Visit these noise levels themselves, between those of the table; False visits the nearest levels of it.
    """

    values: tuple[float, ...] = numbers(ge=0)
    times: tuple[float, ...] = numbers(())
    exact: bool = flag(True)

    def __attrs_post_init__(self) -> None:
        if not any(value > 0 for value in self.values):
            raise OptionError("must hold a value above 0", option="values", value=self.values)
        if self.times and len(self.times) != len(self.values):
            count = len(self.values)
            raise OptionError(f"must have one entry for each of the {count} values", option="times", value=self.times)

    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of the values, descending."""
        return np.asarray(-2 * np.log(np.array(self.values)[self._order()]))

    def time(self, table: ProcessTable) -> F64 | None:
        """Return the times of the levels, or None."""
        return np.array(self.times)[self._order()] if self.times else None

    def _order(self) -> list[int]:
        """Where the values above 0 are, ascending."""
        return [int(i) for i in np.argsort(self.values) if self.values[i] > 0]
