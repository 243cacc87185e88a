"""Evenly in a power of the level: the larger it is, the denser at clean levels.

Usage:

    system = diffkit.compose(backbone="mlp", data_shape=(1, 8, 8))
    samples = system.sample(4, steps=("my_part", {"count": 5}), progress=False)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import integer, number
from diffkit.protocols import LevelSpacing
from diffkit.table import ProcessTable


@frozen
class MyPart(LevelSpacing):
    """Evenly in a power of the level: the larger it is, the denser at clean levels.

    Attributes:
        count: Number of levels; of ``steps="my_part20"`` it is 20. Fewer where T is smaller.
        power: Above 1 denser at clean levels, below 1 at noisy ones.
    Source: which paper, which equation.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(20, ge=1)
    power: float = number(2.0, gt=0)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending, none twice: all that depends on the table is computed here."""
        share = np.linspace(0, 1, self.count) ** self.power if self.count > 1 else np.ones(1)
        return tuple(sorted({int(k) for k in np.round(1 + share * (table.num_steps - 1))}))
