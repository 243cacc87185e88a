"""The learning rate falls as the inverse square root of the number of updates, without an end."""

from __future__ import annotations

import math

from attrs import frozen

from diffkit.options import integer
from diffkit.protocols import LRSchedule
from diffkit.registry import registry


@registry("lr_schedule").register("rsqrt")
@frozen
class Rsqrt(LRSchedule):
    """The learning rate falls as the inverse square root of the number of updates, without an end.

    factor = 1 / sqrt(max(step / start, 1))

    Attributes:
        start: Updates after which it begins to fall, >= 1.
    Source: Karras et al. 2024, arXiv:2312.02696, eq. 67; the default is t_ref of its table 6 for ImageNet-512.
    """

    start: int = integer(70_000, ge=1)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor."""
        return 1 / math.sqrt(max(step / self.start, 1.0))
