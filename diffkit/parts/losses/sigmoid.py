"""Sigmoid weighting: full weight on noisy levels, little on clean ones, independent of the schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.errors import problem
from diffkit.options import choice, number
from diffkit.parts.losses._weighting import WeightedSquare, bound_option, weighted_square
from diffkit.protocols import Composition, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("loss").register("sigmoid")
@frozen
class Sigmoid(WeightedSquare):
    """``1/2 sigmoid(bias - log_snr) (-dlog_snr/dt) |eps - eps*|^2``; of x_start, times snr.

    With the derivative, a level is weighted by the log-SNR it covers, so the schedule only sets how often each is
    drawn. A level without signal covers an infinite range and is left out.

    Attributes:
        bias: log_snr at which the weight of eps is one half.
        measure: "log_snr" is the paper's; "level" leaves out the derivative and the 1/2.
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Kingma & Gao 2023, arXiv:2303.00848 (the weighted loss, with its sigmoid weighting); bias = 2 as
    in its experiments.
    """

    bias: float = number(2.0)
    measure: str = choice("log_snr", ("log_snr", "level"))
    vb_weight: float = bound_option()

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return -dlog_snr/dt of the training table."""
        return {"covered": np.concatenate([[0.0], _covered(table.log_snr[1:])])}

    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr, without the derivative."""
        return (self.bias - log_snr).sigmoid() * log_snr.exp()

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "mse" (of the network's output, not weighted) and, with the bound, "vb", each (B,)."""
        weight = self.weight(at.level.log_snr)
        if self.measure == "log_snr":
            weight = weight * at.cols["covered"] / 2
        return weighted_square(at, weight, self.vb_weight)

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report continuous levels, which have no neighbours."""
        if self.measure == "log_snr" and composition.continuous_time:
            yield problem(
                f"{composition.label('loss')} counts levels by the log_snr they cover, but "
                f"{composition.label('timesteps')} draws continuous ones",
                fix=[{"measure": "level"}, {"timesteps": "uniform"}],
            )


def _covered(log_snr: F64) -> F64:
    """-dlog_snr/dt at levels 1..T, t from 0 to 1; 0 at a level without signal, 1 if only one level has signal."""
    out = np.zeros_like(log_snr)
    known = np.isfinite(log_snr)
    out[known] = -np.gradient(log_snr[known]) * len(log_snr) if known.sum() > 1 else 1.0
    return out
