"""Trains the biases of a network, and nothing else.

Usage:

    data = diffkit.data.load("points", examples=64)
    system = diffkit.compose(backbone="mlp", data_shape=data.shape, bins=data.bins)
    how = ("my_part", {"scale": 2.0})
    diffkit.train(system, data, out="runs/my_part", steps=4, batch_size=8, lr=1e-4, adapter=how)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Adapter

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MyPart"]


@frozen
class MyPart(Adapter):
    """Trains the biases of a network, and nothing else.

    Each bias b of a linear layer is used as b + scale a, and only a is trained.

    Attributes:
        scale: Factor of what is trained.
    Source: which paper, which equation.
    """

    scale: float = number(1.0, gt=0)

    def attach(self, network: nn.Module) -> None:
        """Give every bias something that is added to it, which starts at zero."""
        from torch import nn
        from torch.nn.utils import parametrize

        from ._shift import Shift

        for layer in list(network.modules()):
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                parametrize.register_parametrization(layer, "bias", Shift(layer.bias.detach(), self.scale))

    def merge(self, network: nn.Module) -> None:
        """Put the sums in place of the biases."""
        from torch.nn.utils import parametrize

        for layer in list(network.modules()):
            if parametrize.is_parametrized(layer, "bias"):
                parametrize.remove_parametrizations(layer, "bias", leave_parametrized=True)
