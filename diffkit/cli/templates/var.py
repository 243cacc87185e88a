"""A fixed variance between the two usual ones.

Usage:

    system = diffkit.compose(var="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import VarianceParameterization

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@frozen
class MyPart(VarianceParameterization):
    """A fixed variance between the two usual ones.

    ``log_variance = share log(beta) + (1 - share) log(posterior variance)``

    Attributes:
        share: 0 is the posterior's variance, 1 is beta; in [0, 1].
    Source: which paper, which equation.
    """

    share: float = number(0.5, ge=0, le=1)

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return what is needed at every level of the table in use, float64 (T+1,)."""
        low, high = table.posterior_log_variance, table.upper_log_variance
        return {"log_variance": self.share * high + (1 - self.share) * low}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the log-variance in nats, 0-d or (B,1..)."""
        return cols["log_variance"]
