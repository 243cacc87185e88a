"""EDM's loss: every noise level counts the same at the start of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat
from diffkit.options import number
from diffkit.protocols import Loss, LossInputs

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class EDMLoss(Loss):
    """Squared error of x_start weighted by ``(sigma^2 + alpha^2 sigma_data^2) / (sigma sigma_data)^2``.

    With mean='edm' of the same sigma_data that is the plain squared error of the network's output. With any other mean
    it is the same objective, in terms of that mean's output.

    Attributes:
        sigma_data: Standard deviation of clean data, > 0; as in mean='edm'.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and section 5.
    Deviates: alpha, which is 1 in the paper, is carried along, so that it holds on any path.
    """

    sigma_data: float = number(0.5, gt=0)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (of the network's output, not weighted), each (B,)."""
        mse = mean_flat((at.out - at.target).square())
        sigma, signal = at.level.sigma, at.level.alpha * self.sigma_data
        weight = (sigma.square() + signal.square()) * (at.level.c_out / (sigma * self.sigma_data)).square()
        return {"loss": weight.flatten() * mse, "mse": mse}
