"""Every k-th level from level 1, for the smallest k that gives the count."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.parts.spacings._even import check_count
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
        check_count(self.count, table.num_steps)
        if self.count == 1 < table.num_steps:
            raise OptionError("spacing 'ddim1' is level 1 alone, where no chain can start; use 1 or 'trailing1'")
        for stride in range(1, table.num_steps + 1):
            selected = range(1, table.num_steps + 1, stride)
            if len(selected) == self.count:
                return tuple(selected)
        raise OptionError(
            f"no whole stride gives exactly {self.count} of {table.num_steps} levels; use 'leading{self.count}' or "
            f"'trailing{self.count}'"
        )
