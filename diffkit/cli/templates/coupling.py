"""The brightest examples of a batch get the brightest noise.

Usage:

    system = diffkit.compose(coupling="my_part", sampler="ddim", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import flag
from diffkit.protocols import Conditions, Coupling, Pairing

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@frozen
class MyPart(Coupling):
    """The brightest examples of a batch get the brightest noise.

    Attributes:
        reverse: The brightest examples get the darkest noise.
    Source: which paper, which equation.
    """

    reverse: bool = flag(False)

    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the noise of the batch, all of it, in another order; a pure function of its arguments."""
        examples = x_start.flatten(1).mean(1).argsort(descending=self.reverse)
        return Pairing(noise[noise.flatten(1).mean(1).argsort()][examples.argsort()])
