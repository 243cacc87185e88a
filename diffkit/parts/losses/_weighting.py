"""Squared errors weighted by level, for any mean, with or without IDDPM's term for a learned variance.

A weight is written for the error of x_start. An error of the network's output is c_out times smaller or larger as an
error of x_start, so ``weight c_out^2 |F - F*|^2`` is the same loss for every mean parameterization; for eps, c_out^2 =
1 / snr.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffkit.gaussian import mean_flat, squared_error, vlb_bits
from diffkit.options import number
from diffkit.protocols import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.protocols import LossInputs


def bound_option() -> Any:
    """Field for the option ``vb_weight``: weight of the variational bound, which trains the variance."""
    return number(0.0, ge=0)


def weighted(at: LossInputs, error: Tensor, vb_weight: float) -> Mapping[str, Tensor]:
    """Return "loss", "mse" (of the network's output, not weighted) and, with the bound, "vb"; each (B,).

    Args:
        at: Arguments of the loss.
        error: Weighted error of each example, (B,).
        vb_weight: Weight of the bound (bits per dimension), times T; its gradient does not reach the mean.
    """
    squared = squared_error(at.out.detach(), at.target)
    terms = {"loss": error, "mse": mean_flat(squared)}
    if not vb_weight:
        return terms
    vb = vlb_bits(at, squared_error=squared, out=at.out.detach())
    return {**terms, "loss": error + vb_weight * at.num_steps * vb, "vb": vb}  # torch 2.6 compiles no `|`


def weighted_square(at: LossInputs, weight: Tensor, vb_weight: float) -> Mapping[str, Tensor]:
    """The same for a squared error of x_start times ``weight``, (B,1..)."""
    scale = (weight * at.level.c_out.square()).flatten()
    return weighted(at, scale * mean_flat(squared_error(at.out, at.target)), vb_weight)


class WithBound(Loss):
    """Base of losses with the option ``vb_weight``: with it, they need steps, and train a learned variance."""

    vb_weight: float

    @property
    def trains_variance(self) -> bool:
        """True with the bound."""
        return self.vb_weight > 0

    needs_transition = needs_learned_variance = trains_variance


class WeightedSquare(WithBound):
    """A squared error of x_start with a weight at any log_snr: base of losses that add a weight and options."""

    @abstractmethod
    def weight(self, log_snr: Tensor) -> Tensor:
        """Return the weight of a squared error of x_start at any log_snr."""

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "mse" (of the network's output, not weighted) and, with the bound, "vb", each (B,)."""
        return weighted_square(at, self.weight(at.level.log_snr), self.vb_weight)
