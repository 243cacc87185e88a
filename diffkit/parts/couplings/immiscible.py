"""Each example is mixed with noise near it, so that training sees fewer contradicting targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import flag
from diffkit.parts.couplings._assignment import least_cost, within_classes
from diffkit.protocols import Conditions, Coupling, Pairing
from diffkit.registry import registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@registry("coupling").register("immiscible")
@frozen
class Immiscible(Coupling):
    """The pairs of a batch with the least sum of distances ``|x_start - noise|``.

    Attributes:
        by_class: As in 'minibatch_ot'.
    Source: Li et al. 2024, arXiv:2406.12303, algorithm 1.
    Deviates: distances are computed in the data's precision, where the paper halves it to save memory.
    """

    by_class: bool = flag(True)

    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the noise of a batch in another order."""
        import torch

        cost = torch.cdist(x_start.flatten(1), noise.flatten(1))
        return Pairing(noise[within_classes(least_cost, cost, conditions, self.by_class)])
