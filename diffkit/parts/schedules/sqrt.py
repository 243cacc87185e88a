"""Square-root schedule: noise rises fast at first, then more slowly, for data that is easily recognized under noise."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("schedule").register("sqrt")
@frozen
class Sqrt(NoiseSchedule):
    """``beta_k = min(1 - f(k/T) / f((k-1)/T), max_beta)``, ``f(u) = 1 - sqrt(u + s)``: made for embeddings of words.

    Attributes:
        s: Noise at the start, in [0, 1).
        max_beta: Cap on a step's variance, in (0, 1); only the last step meets it.
    Source: Li et al. 2022, arXiv:2205.14217, appendix A; s = 1e-4 as there.
    """

    s: float = number(1e-4, ge=0, lt=1)
    max_beta: float = number(0.999, gt=0, lt=1)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        f = 1 - np.sqrt(np.arange(num_steps + 1) / num_steps + self.s)
        # Where f is 0 the quotient is undefined, and beta is the cap.
        betas = np.divide(f[:-1] - f[1:], f[:-1], out=np.ones(num_steps), where=f[:-1] > 0)
        return ProcessTable.from_betas(np.minimum(betas, self.max_beta))
