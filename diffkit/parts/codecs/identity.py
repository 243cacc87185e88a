"""Data as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Codec
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("codec").register("identity")
@frozen
class Identity(Codec):
    """Latents are the data itself; a system that is composed with it has no codec."""

    affine: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def encode(self, x: Tensor) -> Tensor:
        """Return data as it is."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return data as it is."""
        return z

    def log_det(self, x: Tensor) -> Tensor:
        """Return 0 for each example."""
        return x.new_zeros(x.shape[0])
