"""Evenly in the time that conditions the network."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import integer
from diffkit.parts.spacings._even import even
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("time")
@frozen
class EvenTime(LevelSpacing):
    """Evenly in the time that conditions the network, from level 1 to T.

    Attributes:
        count: Number of levels.
    """

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        return even(table.time, self.count)
