"""The network's own log-variance, unbounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import VarianceParameterization
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("var").register("learned")
@frozen
class Learned(VarianceParameterization):
    """``log_variance = raw``, of the transition the network was trained on.

    A respaced chain has other transitions, for which a raw log-variance is too small; 'learned_range' follows them.
    Source: Ho et al. 2020, arXiv:2006.11239, section 4.2 (reported there as unstable).
    """

    extra_outputs: ClassVar[int] = 1

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the raw channels, (B, C, *S)."""
        assert raw is not None, "the denoiser splits off the variance channels"
        return raw
