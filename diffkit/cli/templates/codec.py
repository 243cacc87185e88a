"""A scale that is linear near zero and logarithmic far from it, for data with heavy tails.

Usage:

    system = diffkit.compose(codec="my_part", bins=None, backbone="mlp", data_shape=(1, 64))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Codec

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MyPart(Codec):
    """A scale that is linear near zero and logarithmic far from it, for data with heavy tails.

    ``z = asinh(x / scale)``

    Attributes:
        scale: Size of data up to which it is about linear, > 0.
    Source: which paper, which equation.
    """

    elementwise: ClassVar[bool] = True

    scale: float = number(1.0, gt=0)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of data, (B, C, *S): what the network sees."""
        return (x / self.scale).asinh()

    def decode(self, z: Tensor) -> Tensor:
        """Return the data of latents, (B, C, *S); it undoes encode, as ``exact`` is True."""
        return z.sinh() * self.scale

    def log_det(self, x: Tensor) -> Tensor:
        """Return log |det dz/dx| of each example, (B,), by which a density changes."""
        return -0.5 * (x.square() + self.scale**2).log().flatten(1).sum(1)
