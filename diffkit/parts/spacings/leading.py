"""Every (T // count)-th level from level 1."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import integer
from diffkit.parts.spacings._even import check_count_from_level_1
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("leading")
@frozen
class Leading(LevelSpacing):
    """Every (T // count)-th level from level 1.

    Attributes:
        count: Number of levels.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the leading level of each stride, ascending."""
        check_count_from_level_1("leading", self.count, table.num_steps)
        stride = table.num_steps // self.count
        return tuple(1 + stride * i for i in range(self.count))
