"""Evenly from level 1 to T, rounded to the nearest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import integer
from diffkit.parts.spacings._even import check_count
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("linspace")
@frozen
class Linspace(LevelSpacing):
    """Evenly from level 1 to T, rounded to the nearest.

    Attributes:
        count: Number of levels.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        check_count(self.count, table.num_steps)
        if self.count == 1:
            return (table.num_steps,)
        return tuple(int(k) for k in np.round(np.linspace(1, table.num_steps, self.count)))
