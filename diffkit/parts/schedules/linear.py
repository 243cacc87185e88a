"""DDPM's linear schedule: the variance of each step rises evenly."""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("schedule").register("linear")
@frozen
class Linear(NoiseSchedule):
    """Per-step variances evenly spaced, scaled so that the whole chain adds the same noise at any T.

    ``beta_k = 1000/T (start + (end - start) (k - 1)/(T - 1))``

    Attributes:
        start: First variance at T = 1000, in (0, 1).
        end: Last variance at T = 1000, in (0, 1). A beta above 1 is impossible, so T >= 1000 end; a single level has
            the first.
    Source: Ho et al. 2020, arXiv:2006.11239, section 4; scaling by 1000/T: Nichol & Dhariwal 2021, arXiv:2102.09672.
    """

    start: float = number(1e-4, gt=0, lt=1)
    end: float = number(0.02, gt=0, lt=1)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the linear table; `OptionError` names the smallest num_steps where every beta is below 1."""
        betas = np.linspace(1000 / num_steps * self.start, 1000 / num_steps * self.end, num_steps)
        if betas.max() > 1:
            # a beta of just 1 leaves no signal at the last level, where eps does not determine x_start
            bound = 1000 * max(self.start, self.end)
            smallest, with_signal = math.ceil(bound), math.floor(bound) + 1
            raise OptionError(
                f"gives schedule 'linear' a variance above 1, as any below {smallest} does",
                option="num_steps",
                value=num_steps,
                fix=[{"num_steps": with_signal}, {"schedule": "cosine"}],
            )
        return ProcessTable.from_betas(betas)
