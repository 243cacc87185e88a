"""Sigmoid schedule: the signal's share falls as a sigmoid of time, gently at both ends."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import F64, ProcessTable


@registry("schedule").register("sigmoid")
@frozen
class Sigmoid(NoiseSchedule):
    """``alpha_bar = (g(end) - g(start + u (end - start))) / (g(end) - g(start))``, ``g(x) = sigmoid(x / tau)``.

    u = k / T.

    Attributes:
        start, end: Interval of the sigmoid that is used, start < end.
        tau: Its width, > 0; larger is closer to linear.
        clip_min: Smallest alpha_bar, in [0, 1); 0 leaves no signal at T.
    Source: Jabri et al. 2022, arXiv:2212.11972, appendix B; Chen 2023, arXiv:2301.10972, algorithm 1.
    """

    start: float = number(-3.0)
    end: float = number(3.0)
    tau: float = number(1.0, gt=0)
    clip_min: float = number(1e-9, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        if self.start >= self.end:
            raise OptionError(f"must be below end, {self.end!r}", option="start", value=self.start)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the sigmoid schedule's table; any num_steps works."""
        u = np.arange(num_steps + 1) / num_steps
        g = _sigmoid((self.start + u * (self.end - self.start)) / self.tau)
        noise = np.minimum((g[1:] - g[0]) / (g[-1] - g[0]), 1 - self.clip_min)
        signal = np.maximum((g[-1] - g[1:]) / (g[-1] - g[0]), self.clip_min)
        log_signal = np.log(signal, out=np.full_like(signal, -np.inf), where=signal > 0)
        return ProcessTable.from_log_snr(log_signal - np.log(noise))


def _sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-x)))
