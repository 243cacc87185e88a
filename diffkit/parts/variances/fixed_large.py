"""The forward process's variance (beta), exact for data from a unit Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.protocols import VarianceParameterization
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("var").register("fixed_large")
@frozen
class FixedLarge(VarianceParameterization):
    """``log_variance = log(beta)`` in data units, with level 2's posterior variance at level 1.

    At level 1 beta would spoil the decoder's term of the bound.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1; level 1 as in improved-diffusion.
    """

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the upper log-variance with its first level clipped."""
        first = np.arange(table.num_steps + 1) == 1
        return {"log_variance": np.where(first, table.posterior_log_variance, table.upper_log_variance)}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the column, 0-d or (B,1..)."""
        return cols["log_variance"]
