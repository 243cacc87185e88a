"""Optimal transport between the data and the noise of a batch: paths cross less and are straighter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import choice, flag, integer, number
from diffkit.parts.couplings._assignment import least_cost, sinkhorn, within_classes
from diffkit.protocols import Conditions, Coupling, Pairing
from diffkit.registry import registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@registry("coupling").register("minibatch_ot")
@frozen
class MinibatchOT(Coupling):
    """The pairs of a batch with the least sum of squared distances ``|x_start - noise|^2``.

    Attributes:
        method: "exact" is the best permutation, by SciPy on the CPU; "sinkhorn" draws from an entropic plan, on the
            device of the data.
        entropy: Of Sinkhorn's plan, > 0, in units of the mean cost: towards 0 it is the permutation, towards infinity
            independent noise.
        iterations: Of Sinkhorn's algorithm, >= 1.
        by_class: Exchange noise among examples of one class ``y`` only, so that noise stays independent of the class.
    Source: Tong et al. 2023, arXiv:2302.00482, section 3.2; Pooladian et al. 2023, arXiv:2304.14772, section 4.
    Deviates: examples keep their place and noise is exchanged, where the papers draw pairs with replacement.
    """

    method: str = choice("exact", ("exact", "sinkhorn"))
    entropy: float = number(0.05, gt=0)
    iterations: int = integer(100, ge=1)
    by_class: bool = flag(True)

    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the noise of a batch in another order, or some of it twice, by the plan."""
        import torch

        cost = torch.cdist(x_start.flatten(1), noise.flatten(1)).square()
        return Pairing(noise[within_classes(partial(self._assign, generator), cost, conditions, self.by_class)])

    def _assign(self, generator: torch.Generator, cost: Tensor) -> Tensor:
        if self.method == "exact":
            return least_cost(cost)
        return sinkhorn(cost, self.entropy, self.iterations, generator)
