"""A threshold that follows a percentile: keeps a strongly guided estimate within the range of data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import number
from diffkit.protocols import Conditions, Estimate, Evaluate, Guidance, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("dynamic_threshold")
@frozen
class DynamicThreshold(Guidance):
    """Clip each example's estimate of x_start to [-s, s] and divide by s / limit, where s is a percentile of its size.

    ``s = min(max(limit, percentile of |x_start|), largest)``. Put it after the guidance whose result it limits.

    Attributes:
        percentile: Share in (0, 1] of the values that are not clipped, if more than that lie outside of the limit.
        limit: Largest magnitude of data, > 0.
        largest: Largest s, >= limit; None is no bound. With largest = limit this is 'static_threshold'.
    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3; the default percentile is that of DPM-Solver++'s
        release (Lu et al. 2022, arXiv:2211.01095).
    """

    neutral: ClassVar[tuple[str, float]] = ("limit", 1e9)

    percentile: float = number(0.995, gt=0, le=1)
    limit: float = number(1.0, gt=0)
    largest: float | None = number(None, optional=True, gt=0)

    def __attrs_post_init__(self) -> None:
        """Refuse a bound below the limit, which would enlarge every estimate."""
        if self.largest is not None and self.largest < self.limit:
            raise OptionError(f"largest must be >= limit={self.limit:g}, got {self.largest!r}")

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate within [-limit, limit]."""
        import torch

        estimate = evaluate(x, level, conditions)
        x_start = estimate.x_start
        s = _percentile(x_start.flatten(1).abs(), self.percentile).clamp(self.limit, self.largest)
        s = s.view(-1, *(1,) * (x_start.ndim - 1))
        return estimate.with_x_start(torch.minimum(torch.maximum(x_start, -s), s) * (self.limit / s))


def _percentile(rows: Tensor, share: float) -> Tensor:
    """Percentile of each row (B, N), linear between order statistics, (B,); torch.quantile refuses large rows."""
    import torch

    count = rows.shape[1]
    position = share * (count - 1)
    low = math.floor(position)
    # only the few largest values are sorted
    largest = rows.topk(count - low, dim=1).values
    below, above = largest[:, -1], largest[:, max(count - low - 2, 0)]
    return torch.lerp(below, above, position - low)
