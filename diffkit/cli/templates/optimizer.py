"""Steps against the sign of the gradient's running mean.

Usage:

    data = diffkit.data.load("points", examples=64)
    system = diffkit.compose(backbone="mlp", data_shape=data.shape, bins=data.bins)
    how = ("my_part", {"momentum": 0.8})
    diffkit.train(system, data, out="runs/my_part", steps=4, batch_size=8, lr=1e-4, optimizer=how)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["MyPart"]


@frozen
class MyPart(Optimizer):
    """Steps against the sign of the gradient's running mean.

    m <- momentum m + (1 - momentum) g,  w <- w - lr weight_decay w - lr sign(m)

    Attributes:
        momentum: Decay rate of the running mean, in [0, 1).
    Source: which paper, which equation.
    """

    elementwise: ClassVar[bool] = True  # each element is trained on its own, so parameters may be sharded

    momentum: float = number(0.9, ge=0, lt=1)

    def build(self, groups: list[dict[str, Any]], network: nn.Module) -> torch.optim.Optimizer:
        """Return the torch optimizer; any that needs no closure will do, of any package."""
        from ._sign_descent import SignDescent

        return SignDescent(groups, self.momentum)
