"""Evenly in the square root of the level: denser at clean levels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import integer
from diffkit.parts.spacings._even import even
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("quad")
@frozen
class Quadratic(LevelSpacing):
    """Evenly in the square root of the level, from 1 to T.

    Source: Song et al. 2020, arXiv:2010.02502, appendix D.3.

    Attributes:
        count: Number of levels.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        return even(np.sqrt(np.arange(table.num_steps + 1)), self.count)
