"""Cosine schedule shifted in log-SNR, so that noise hides as much of large images as of small ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import number
from diffkit.protocols import ContinuousSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor


@registry("schedule").register("shifted_cosine")
@frozen
class ShiftedCosine(ContinuousSchedule):
    """``log_snr = -2 log tan(a + u (b - a)) + 2 log(base / size)``, u = k/T; time is 1000 u. Continuous.

    Neighbouring pixels are similar, so the same noise hides less of a larger image. a and b are the angles of
    `log_snr_max` and `log_snr_min`, before the shift.

    Attributes:
        size: Height of the images, > 0, pixels.
        base: Height at which no shift is needed, > 0, pixels.
        log_snr_max, log_snr_min: log_snr before the shift at level 0 (where data is clean nevertheless) and at
            level T.
    Source: Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1; base = 64 and the range of +-15 as there.
    """

    size: float = number(256.0, gt=0)
    base: float = number(64.0, gt=0)
    log_snr_max: float = number(15.0)
    log_snr_min: float = number(-15.0)

    def __attrs_post_init__(self) -> None:
        if self.log_snr_min >= self.log_snr_max:
            raise OptionError(
                f"log_snr_min must be below log_snr_max, got {self.log_snr_min!r} and {self.log_snr_max!r}"
            )

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        u = np.arange(1, num_steps + 1) / num_steps
        first, last = self._angles()
        log_snr = -2 * np.log(np.tan(first + u * (last - first))) + self._shift()
        return ProcessTable.from_log_snr(log_snr, time=1000 * u)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std 1 and time at any log_snr."""
        first, last = self._angles()
        angle = (-(log_snr - self._shift()) / 2).exp().atan()
        return log_snr.new_ones(log_snr.shape), 1000 * (angle - first) / (last - first)

    def _angles(self) -> tuple[float, float]:
        return math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(-self.log_snr_min / 2))

    def _shift(self) -> float:
        return 2 * math.log(self.base / self.size)
