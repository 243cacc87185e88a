"""DDPM's loss: the squared error of the network's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error
from diffkit.protocols import Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("simple")
@frozen
class Simple(Loss):
    """``L_simple = |F - F*|^2``, averaged over dimensions; it does not train a variance.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14.
    """

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse", each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        return {"loss": mse, "mse": mse}
