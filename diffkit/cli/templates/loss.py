"""A squared error that grows only linearly for examples far off.

Usage:

    system = diffkit.compose(loss="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error
from diffkit.options import number
from diffkit.protocols import Loss, LossInputs

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MyPart(Loss):
    """A squared error that grows only linearly for examples far off.

    ``L = sqrt(mse + c^2) - c``

    Attributes:
        c: Root mean squared error from which the growth is linear, > 0.
    Source: which paper, which equation.
    """

    c: float = number(1.0, gt=0)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse", each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        return {"loss": (mse + self.c**2).sqrt() - self.c, "mse": mse}
