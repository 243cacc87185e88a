"""Log-linear schedule: log-SNR falls evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import choice, number
from diffkit.protocols import ContinuousSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor


@registry("schedule").register("log_linear")
@frozen
class LogLinear(ContinuousSchedule):
    """``log_snr = log_snr_max + u (log_snr_min - log_snr_max)``, u = (k - 1) / (T - 1); time is 1000 u.

    Continuous: defined at any log_snr. On the variance-exploding path sigma grows by the same factor from level to
    level.

    Attributes:
        log_snr_max: log_snr at level 1.
        log_snr_min: log_snr at level T.
        path: "vp" (variance-preserving) or "ve" (variance-exploding, alpha = 1).
    Source: Kingma et al. 2021, arXiv:2107.00630, whose learned schedule is initialized so, from 13.3 to -5; "ve": Song
    & Ermon 2019, arXiv:1907.05600, section 4.3.
    """

    log_snr_max: float = number(13.3)
    log_snr_min: float = number(-5.0)
    path: str = choice("vp", ("vp", "ve"))

    def __attrs_post_init__(self) -> None:
        if self.log_snr_min >= self.log_snr_max:
            raise OptionError(
                f"log_snr_min must be below log_snr_max, got {self.log_snr_min!r} and {self.log_snr_max!r}"
            )

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works. A single level is the noisiest."""
        u = np.linspace(0, 1, num_steps) if num_steps > 1 else np.ones(1)
        log_snr = self.log_snr_max + u * (self.log_snr_min - self.log_snr_max)
        total_std = np.sqrt(1 + np.exp(-log_snr)) if self.path == "ve" else 1.0
        return ProcessTable.from_log_snr(log_snr, total_std, 1000 * u)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std and time at any log_snr."""
        total_std = (1 + (-log_snr).exp()).sqrt() if self.path == "ve" else log_snr.new_ones(log_snr.shape)
        return total_std, 1000 * (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)
