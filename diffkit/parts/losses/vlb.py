"""The variational bound itself, one level at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error, vlb_bits
from diffkit.options import flag
from diffkit.protocols import Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("vlb")
@frozen
class VLB(Loss):
    """``L_vlb = T L_{k-1}`` in bits per dimension: an estimate of the whole bound (without its constant prior term).

    Noisy under uniform levels; the paper trains it with timesteps='loss_second_moment'.

    Attributes:
        scale_by_steps: Multiply by T of the table in use, so that the mean over levels is the bound.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 4 and 18.
    """

    scale_by_steps: bool = flag(True)
    needs_transition: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = True

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "vb" (the term in bits per dimension) and "mse", each (B,)."""
        squared = squared_error(at.out, at.target)
        vb = vlb_bits(at, squared_error=squared, out=at.out)
        loss = at.num_steps * vb if self.scale_by_steps else vb
        return {"loss": loss, "vb": vb, "mse": mean_flat(squared.detach())}
