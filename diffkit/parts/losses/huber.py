"""Pseudo-Huber loss: quadratic in small errors, linear in large ones, so that outliers weigh less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat
from diffkit.options import number
from diffkit.parts.losses._space import error_scale, space_option
from diffkit.parts.losses._weighting import WithBound, bound_option, weighted
from diffkit.protocols import LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("huber")
@frozen
class Huber(WithBound):
    """``2 delta^2 (sqrt(1 + (e / delta)^2) - 1)``, e the error of eps, or of another space.

    Elementwise, then averaged; ``e^2`` for errors much smaller than delta.

    Attributes:
        delta: Error at which it turns from quadratic to linear, > 0, in units of e.
        space: What e is the error of, as in 'simple'. A level without signal has no error of eps.
        vb_weight: Weight of the variational bound (bits per dimension, times T), >= 0, which trains a learned variance
            as in 'hybrid'.
    Source: Khrapov et al. 2024, arXiv:2403.16728 (its pseudo-Huber loss).
    Deviates: twice as large, so that it tends to the squared error; delta is the same at every level, where the paper
    lets it fall with time.
    """

    delta: float = number(1.0, gt=0)
    space: str = space_option("eps")
    vb_weight: float = bound_option()

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "mse" (of the network's output, not weighted) and, with the bound, "vb", each (B,)."""
        return weighted(at, mean_flat(self._penalty(at)), self.vb_weight)

    def _penalty(self, at: LossInputs) -> Tensor:
        error, scale = at.out - at.target, error_scale(self.space, at.level)
        if scale is not None:
            error = error * scale
        squared = error.square()
        # sqrt(1 + z) - 1 = z / (sqrt(1 + z) + 1), which has no cancellation where z is small
        return 2 * squared / ((1 + squared / self.delta**2).sqrt() + 1)
