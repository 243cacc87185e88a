"""Laplace schedule: levels are dense where signal and noise are equal, as a Laplace distribution of log-SNR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import ContinuousSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor


@registry("schedule").register("laplace")
@frozen
class Laplace(ContinuousSchedule):
    """``log_snr = mean - width sgn(1/2 - u) log(1 - 2 |u - 1/2|)``, u = (k - 1/2) / T; time is 1000 u.

    Continuous: defined at any log_snr. Level 1 has log_snr ``mean + width log T``, so there is noise even there.

    Attributes:
        mean: log_snr in the middle of the chain.
        width: Scale of the distribution, > 0.
    Source: Hang et al. 2024, arXiv:2407.03297, table 1; mean = 0 and width = 0.5 as in its experiments.
    """

    mean: float = number(0.0)
    width: float = number(0.5, gt=0)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        u = (np.arange(num_steps) + 0.5) / num_steps
        log_snr = self.mean - self.width * np.sign(0.5 - u) * np.log1p(-2 * np.abs(u - 0.5))
        return ProcessTable.from_log_snr(log_snr, time=1000 * u)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std 1 and time at any log_snr."""
        away = (log_snr - self.mean) / self.width
        tail = 0.5 * (-away.abs()).exp()
        return log_snr.new_ones(log_snr.shape), 1000 * (1 - tail).where(away < 0, tail)
