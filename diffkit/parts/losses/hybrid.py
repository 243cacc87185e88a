"""IDDPM's loss: the squared error trains the mean, a little of the variational bound trains the variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error, vlb_bits
from diffkit.options import flag, number
from diffkit.parts.losses._space import in_space, space_option
from diffkit.protocols import Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("hybrid")
@frozen
class Hybrid(Loss):
    """``L_hybrid = L_simple + vb_weight T L_{k-1}``, where the bound's gradient does not reach the mean.

    One of the bound's T terms is sampled for each example, hence the factor T; vb_weight is the paper's lambda, 0.001.

    Attributes:
        vb_weight: Weight of the bound (bits per dimension), >= 0.
        scale_by_steps: Multiply by T of the table in use. ``vb_weight=1, scale_by_steps=False`` is the loss of every
            guided-diffusion model.
        space: Whose squared error trains the mean, as in 'simple'.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 16.
    """

    vb_weight: float = number(1e-3, ge=0)
    scale_by_steps: bool = flag(True)
    space: str = space_option()
    needs_transition: ClassVar[bool] = True
    needs_learned_variance: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = True

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "mse" (of the output) and "vb" (bits per dimension, unweighted), each (B,)."""
        squared = squared_error(at.out, at.target)
        mse = mean_flat(squared)
        vb = vlb_bits(at, squared_error=squared.detach(), out=at.out.detach())
        weight = self.vb_weight * (at.num_steps if self.scale_by_steps else 1)
        return {"loss": in_space(self.space, at.level, mse) + weight * vb, "mse": mse, "vb": vb}
