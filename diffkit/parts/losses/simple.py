"""DDPM's loss: the squared error of the network's output, or of what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error
from diffkit.parts.losses._space import in_space, space_option
from diffkit.protocols import Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("simple")
@frozen
class Simple(Loss):
    """``L_simple = |F - F*|^2``, averaged over dimensions; it does not train a variance.

    Attributes:
        space: Whose squared error it is: of the "network"'s output, of "eps", "x_start", "v" (``alpha eps - sigma
            x_start``) or "velocity" (``eps - x_start``), whatever the network predicts. A level without signal has no
            error of eps.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; the pairs of prediction and space: Li & He 2025, arXiv:2511.13720,
        table 1.
    """

    space: str = space_option()

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (of the network's output), each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        return {"loss": in_space(self.space, at.level, mse), "mse": mse}
