"""Equal sections of the levels, each with a count of its own, as improved-diffusion rounds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from attrs import frozen

from diffkit.options import integers
from diffkit.parts.spacings._even import check_count
from diffkit.protocols import LevelSpacing
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("spacing").register("sections")
@frozen
class Sections(LevelSpacing):
    """Equal sections (the first ones a level longer where T does not divide), each with its count.

    One section is a plain number of levels; a count of 1 alone is level T, the only one from which a chain of one step
    can start (improved-diffusion's "1" is the cleanest level).

    Attributes:
        counts: Number of levels of each section, cleanest first.
    """

    uses_noise: ClassVar[bool] = False

    counts: tuple[int, ...] = integers(ge=1)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending."""
        return (table.num_steps,) if self.counts == (1,) else tuple(self._levels(table.num_steps))

    def _levels(self, num_steps: int) -> Iterator[int]:
        sections = len(self.counts)
        size, extra = divmod(num_steps, sections)
        start = 1
        for i, count in enumerate(self.counts):
            length = size + (1 if i < extra else 0)
            check_count(count, length, "the table" if sections == 1 else f"section {i + 1} of {num_steps} levels")
            stride = (length - 1) / (count - 1) if count > 1 else 1.0
            # Summed, not multiplied, and rounded half to even: improved-diffusion's positions differ from i * stride in
            # the last digit, which moves a level for 310 of the counts up to 1000.
            position = 0.0
            for _ in range(count):
                yield start + round(position)
                position += stride
            start += length
