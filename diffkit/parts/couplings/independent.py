"""Noise that knows nothing of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Conditions, Coupling, Pairing
from diffkit.registry import registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@registry("coupling").register("independent")
@frozen
class Independent(Coupling):
    """Each example gets the noise that was drawn for it; a system that is composed with it has no coupling.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 1.
    """

    scope: ClassVar[str] = "row"

    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the noise as it is."""
        return Pairing(noise)
