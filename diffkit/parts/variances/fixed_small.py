"""The posterior's variance (beta-tilde), exact for data at a single point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.protocols import VarianceParameterization
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("var").register("fixed_small")
@frozen
class FixedSmall(VarianceParameterization):
    """``log_variance = log(posterior variance)``, with level 2's at level 1.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1.
    """

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the clipped posterior log-variance."""
        return {"log_variance": table.posterior_log_variance}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the column, 0-d or (B,1..)."""
        return cols["log_variance"]
