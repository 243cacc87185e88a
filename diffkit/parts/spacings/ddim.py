"""Every k-th level from level 1, for the smallest k that gives the count."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.parts.spacings._even import check_count_from_level_1
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("ddim")
@frozen
class DDIMStride(LevelSpacing):
    """Every k-th level from level 1 for the smallest k that gives exactly ``count``, as improved-diffusion's "ddimN".

    Attributes:
        count: Number of levels.
    """

    uses_noise: ClassVar[bool] = False

    count: int = integer(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return every k-th level, ascending."""
        check_count_from_level_1("ddim", self.count, table.num_steps)
        for stride in range(1, table.num_steps + 1):
            selected = range(1, table.num_steps + 1, stride)
            if len(selected) == self.count:
                return tuple(selected)
        raise OptionError(
            f"no whole stride gives exactly {self.count} of {table.num_steps} levels; use 'leading{self.count}' or "
            f"'trailing{self.count}'"
        )
