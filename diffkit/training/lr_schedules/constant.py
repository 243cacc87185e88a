"""The same learning rate in every update."""

from __future__ import annotations

from attrs import frozen

from diffkit.protocols import LRSchedule
from diffkit.registry import registry


@registry("lr_schedule").register("constant")
@frozen
class Constant(LRSchedule):
    """The same learning rate in every update: ``factor = 1``."""

    def factor(self, step: int, steps: int) -> float:
        """Return 1."""
        return 1.0
