"""A schedule whose log alpha_bar falls as a square.

Usage:

    system = diffkit.compose(schedule="my_part", num_steps=100, backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.table import ProcessTable


@frozen
class MyPart(NoiseSchedule):
    """A schedule whose log alpha_bar falls as a square.

    ``alpha_bar(u) = exp(-rate u^2)``, u from 0 to 1

    Attributes:
        rate: How much signal is lost in all, > 0; 10 leaves a share of exp(-10).
    Source: which paper, which equation.
    """

    rate: float = number(10.0, gt=0)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        u = np.arange(num_steps + 1) / num_steps
        return ProcessTable.from_alpha_bar(np.exp(-self.rate * u**2))
