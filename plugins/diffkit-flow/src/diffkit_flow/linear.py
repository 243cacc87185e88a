"""The straight path from data to noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import ContinuousSchedule
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class FlowLinear(ContinuousSchedule):
    """``x_u = (1 - u) x_start + u eps``, u from 0 (data) to 1 (noise) in even steps.

    Attributes:
        time_scale: The network is conditioned on time_scale u. 1000 suits networks made for 1000 levels.
    Source: Liu et al. 2022, arXiv:2209.03003, eq. 1; Lipman et al. 2022, arXiv:2210.02747, eq. 20 with sigma_min = 0.
    Deviates: time runs from data to noise, as everywhere in diffkit; in the papers it runs the other way.
    """

    time_scale: float = number(1000.0, gt=0)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table, without signal at its last level; any num_steps works."""
        k = np.arange(1, num_steps + 1)
        return ProcessTable.from_alpha_sigma(
            (num_steps - k) / num_steps, k / num_steps, self.time_scale * k / num_steps
        )

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (total_std, time) where (1 - u) / u = exp(log_snr / 2)."""
        signal, u = (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()
        return (signal.square() + u.square()).sqrt(), self.time_scale * u
