"""Thresholds that keep a strongly guided estimate within the range of data."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from diffkit.options import number
from diffkit.protocols import Conditions, Estimate, Evaluate, Guidance, Level


@frozen
class DynamicThreshold(Guidance):
    """Clip each example's estimate of x_start to [-s, s] and divide by s / limit, where s is a percentile of its size.

    ``s = max(limit, percentile of |x_start|)``. Put it after the guidance whose result it limits.

    Attributes:
        percentile: Share in (0, 1] of the values that are not clipped, if more than that lie outside of the limit.
        limit: Largest magnitude of data, > 0.
    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3; the default percentile is that of DPM-Solver++'s
        release (Lu et al. 2022, arXiv:2211.01095).
    """

    percentile: float = number(0.995, gt=0, le=1)
    limit: float = number(1.0, gt=0)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate within [-limit, limit]."""
        estimate = evaluate(x, level, conditions)
        x_start = estimate.x_start
        s = _percentile(x_start.flatten(1).abs(), self.percentile).clamp_min(self.limit)
        s = s.view(-1, *(1,) * (x_start.ndim - 1))
        return estimate.with_x_start(torch.minimum(torch.maximum(x_start, -s), s) * (self.limit / s))


@frozen
class StaticThreshold(Guidance):
    """Clip the estimate of x_start to [-limit, limit].

    Like ``clip_x_start``, but for another range or at another position among several guidances.

    Attributes:
        limit: Largest magnitude, > 0.
    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """

    limit: float = number(1.0, gt=0)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate within [-limit, limit]."""
        estimate = evaluate(x, level, conditions)
        return estimate.with_x_start(estimate.x_start.clamp(-self.limit, self.limit))


def _percentile(rows: Tensor, share: float) -> Tensor:
    """Percentile of each row (B, N), linear between order statistics, (B,); torch.quantile refuses large rows."""
    count = rows.shape[1]
    position = share * (count - 1)
    low = math.floor(position)
    # only the few largest values are sorted
    largest = rows.topk(count - low, dim=1).values
    below, above = largest[:, -1], largest[:, max(count - low - 2, 0)]
    return torch.lerp(below, above, position - low)
