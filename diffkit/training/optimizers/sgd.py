"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import flag, number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch


@registry("optimizer").register("sgd")
@frozen
class SGD(OfTorch):
    """Stochastic gradient descent, with momentum.

    g <- g + weight_decay w
    m <- momentum m + (1 - dampening) g,  w <- w - lr m,  or lr (g + momentum m) with nesterov

    Attributes:
        momentum: Share of the last step that is added to this one, in [0, 1).
        dampening: Share of the gradient that momentum leaves out, in [0, 1); 0 with nesterov.
        nesterov: Take the gradient after the step of the momentum; needs momentum.
    Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, as in torch.
    """

    torch_name: ClassVar[str] = "SGD"
    fused: ClassVar[bool] = True
    fused_shards: ClassVar[bool] = False

    momentum: float = number(0.9, ge=0, lt=1)
    dampening: float = number(0.0, ge=0, lt=1)
    nesterov: bool = flag(False)

    def __attrs_post_init__(self) -> None:
        """Check the combination of options."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            raise OptionError(
                "needs momentum above 0 and no dampening", option="nesterov", value=True, fix={"nesterov": False}
            )
