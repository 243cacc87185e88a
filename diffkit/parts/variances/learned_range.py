"""IDDPM's learned variance: the network interpolates between the two fixed ones, in log space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import VarianceParameterization
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("var").register("learned_range")
@frozen
class LearnedRange(VarianceParameterization):
    """``log_variance = f log(beta) + (1 - f) log(posterior variance)``, ``f = (raw + 1) / 2``.

    f is not clamped: outputs beyond [-1, 1] leave the interval, as in the published model.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    Deviates: written as middle + raw half_width, the same value in fewer operations. One `addcmul` would
    suffice, but with scalar coefficients it is four times slower on a CPU than the two operations.
    """

    extra_outputs: ClassVar[int] = 1

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the middle and half the width of the interval, of the table in use."""
        low, high = table.posterior_log_variance, table.upper_log_variance
        return {"middle": (high + low) / 2, "half_width": (high - low) / 2}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the log-variance, (B, C, *S)."""
        assert raw is not None, "the denoiser splits off the variance channels"
        return (raw * cols["half_width"]).add_(cols["middle"])
