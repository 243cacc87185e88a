"""The learning rate falls linearly to 0."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import integer
from diffkit.protocols import LRSchedule
from diffkit.registry import registry


@registry("lr_schedule").register("linear")
@frozen
class Linear(LRSchedule):
    """The learning rate falls linearly to 0.

    factor = 1 - step / end

    Attributes:
        end: Updates after which it is 0, >= 1; those of the run by default. With a fixed number a run can be lengthened
            later.
    Source: improved-diffusion, its option lr_anneal_steps.
    """

    end: int | None = integer(None, optional=True, ge=1)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor, 0 from the end on."""
        return max(1 - step / (self.end or steps), 0.0)
