"""DDPM's loss: the squared error of what the network predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error
from diffkit.protocols import Composition, Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("loss").register("simple")
@frozen
class Simple(Loss):
    """``L_simple = |F - F*|^2``, averaged over dimensions; nothing in it trains a variance.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14.
    """

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse", each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        return {"loss": mse, "mse": mse}

    def problems(self, composition: Composition) -> Iterable[str]:
        """Say that a learned variance would stay untrained."""
        if composition.var.extra_outputs:
            yield (
                f"{composition.label('loss')} has no term that trains {composition.label('var')}; "
                "use loss='hybrid' or var='fixed_large'"
            )
