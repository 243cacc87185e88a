"""Every T/count-th level, down from level T."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import integer
from diffkit.parts.spacings._even import check_count
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("trailing")
@frozen
class Trailing(LevelSpacing):
    """T, T - T/count, ...: ends at level T.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.3.

    Attributes:
        count: Number of levels.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        check_count(self.count, table.num_steps)
        return tuple(table.num_steps - (table.num_steps * i) // self.count for i in reversed(range(self.count)))
