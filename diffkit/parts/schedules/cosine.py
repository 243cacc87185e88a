"""IDDPM's cosine schedule: alpha_bar falls as a squared cosine, gently at both ends of the chain."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("schedule").register("cosine")
@frozen
class Cosine(NoiseSchedule):
    """Squared cosine of the step, each beta capped.

    ``beta_k = min(1 - f(k/T) / f((k-1)/T), max_beta)``, ``f(u) = cos((u + s) / (1 + s) pi/2)^2``

    Attributes:
        s: Offset that prevents the first variances from being too small, >= 0.
        max_beta: Cap on a step's variance, in (0, 1); only the last step reaches it.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """

    s: float = number(0.008, ge=0)
    max_beta: float = number(0.999, gt=0, lt=1)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        u = np.arange(num_steps + 1) / num_steps
        f = np.cos((u + self.s) / (1 + self.s) * np.pi / 2) ** 2
        return ProcessTable.from_betas(np.minimum(1 - f[1:] / f[:-1], self.max_beta))
