"""A network with one hidden layer over all values at once.

Usage:

    system = diffkit.compose(backbone="my_part", data_shape=(1, 8, 8))
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import integer
from diffkit.protocols import Backbone

if TYPE_CHECKING:
    from torch import nn


@frozen
class MyPart(Backbone):
    """A network with one hidden layer over all values at once.

    This class is the recipe: options only. The network lives in a file of its own, so that the options can be read
    without importing torch.

    Attributes:
        hidden: Width of the hidden layer, >= 1.
    Source: which paper, which section.
    """

    hidden: int = integer(64, ge=1)

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return a network (B, C, *S), (B,) -> (B, out_channels, *S)."""
        from ._network import Network

        return Network(math.prod(data_shape), self.hidden, (out_channels, *data_shape[1:]))
