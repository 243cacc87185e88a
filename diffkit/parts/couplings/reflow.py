"""Noise that comes with the data: pairs of noise and the sample that a teacher made from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.protocols import Conditions, Coupling, Pairing
from diffkit.registry import registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@registry("coupling").register("reflow")
@frozen
class Reflow(Coupling):
    """The noise of each example is its condition ``noise``, which the network does not get.

    `diffkit.tasks.reflow_pairs` writes such data.
    Source: Liu et al. 2022, arXiv:2209.03003, section 2.1, algorithm 1.
    """

    scope: ClassVar[str] = "row"
    own_conditions: ClassVar[frozenset[str]] = frozenset({"noise"})

    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the condition ``noise``.

        Raises:
            OptionError: The data has none, or of another shape.
        """
        own = conditions.get("noise")
        if own is None or own.shape != x_start.shape:
            found = "none" if own is None else f"shape {tuple(own.shape)}"
            raise OptionError(
                f"coupling 'reflow' needs a condition 'noise' of shape {tuple(x_start.shape)} with the data, got "
                f"{found}; diffkit.tasks.reflow_pairs writes data with it"
            )
        return Pairing(own.to(noise))
