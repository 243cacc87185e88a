"""VDM's learned schedule: log-SNR falls by a monotone network of time, between given ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import integer, number
from diffkit.protocols import LearnedSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable

if TYPE_CHECKING:
    from torch import Tensor, nn


@registry("schedule").register("monotone")
@frozen
class Monotone(LearnedSchedule):
    """``log_snr(t) = log_snr_max + g(t) (log_snr_min - log_snr_max)``, g from 0 to 1, monotone for any weights.

    Its weights are trained, with the network, to lower the variance of the loss: more time is spent where errors are
    large and vary. The network is conditioned on ``1000 (log_snr_max - log_snr) / (log_snr_max - log_snr_min)``, which
    does not depend on them. Variance-preserving.

    Attributes:
        log_snr_max: log_snr at time 0, level 1.
        log_snr_min: log_snr at time 1, level T.
        hidden: Number of sigmoids that g is made of, >= 1. No level is drawn less than 1 / (1 + hidden) times as often
            as if log_snr fell evenly.
    Source: Kingma et al. 2021, arXiv:2107.00630, section 5.2 and appendices H and I.2; 13.3 and -5 at first.
    Deviates: the ends are options, as the paper trains them by the other terms of the bound; the sigmoids begin evenly
    spread over time, and their heights are bounded.
    """

    log_snr_max: float = number(13.3)
    log_snr_min: float = number(-5.0)
    hidden: int = integer(64, ge=1, le=4096)

    def __attrs_post_init__(self) -> None:
        if self.log_snr_min >= self.log_snr_max:
            raise OptionError(
                f"log_snr_min must be below log_snr_max, got {self.log_snr_min!r} and {self.log_snr_max!r}"
            )

    def build(self, data_shape: tuple[int, ...]) -> nn.Module:
        """Return g, with its derivative."""
        from diffkit.parts.schedules._monotone_network import MonotoneNetwork

        return MonotoneNetwork(self.hidden)

    def log_snr_at(self, module: nn.Module, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_snr and its rate of fall at times, (B,) float64."""
        share, slope = module(time)
        width = self.log_snr_max - self.log_snr_min
        return self.log_snr_max - width * share, width * slope

    def table(self, num_steps: int) -> ProcessTable:
        """Return a table in which log_snr falls evenly; that of the weights is the system's."""
        u = np.linspace(0, 1, num_steps) if num_steps > 1 else np.ones(1)
        return ProcessTable.from_log_snr(self.log_snr_max + u * (self.log_snr_min - self.log_snr_max), time=1000 * u)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std and time at any log_snr."""
        time = 1000 * (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)
        return log_snr.new_ones(log_snr.shape), time
