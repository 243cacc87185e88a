"""The learning rate falls to 0 as half a period of a cosine."""

from __future__ import annotations

import math

from attrs import frozen

from diffkit.options import integer
from diffkit.protocols import LRSchedule
from diffkit.registry import registry


@registry("lr_schedule").register("cosine")
@frozen
class Cosine(LRSchedule):
    """The learning rate falls to 0 as half a period of a cosine.

    factor = (1 + cos(pi step / end)) / 2

    Attributes:
        end: Updates after which it is 0, >= 1; those of the run by default. With a fixed number a run can be lengthened
            later.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """

    end: int | None = integer(None, optional=True, ge=1)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor, 0 from the end on."""
        end = self.end or steps
        return (1 + math.cos(math.pi * min(step, end) / end)) / 2
