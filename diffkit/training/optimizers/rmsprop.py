"""The gradient over the root of its running mean square."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch


@registry("optimizer").register("rmsprop")
@frozen
class RMSprop(OfTorch):
    """The gradient over the root of its running mean square.

    g <- g + weight_decay w
    v <- alpha v + (1 - alpha) g^2,  w <- w - lr g / (sqrt(v) + eps)

    Attributes:
        alpha: Decay rate of the mean square, in [0, 1).
        eps: Added to its root, > 0.
        momentum: Share of the last step that is added to this one, in [0, 1).
        centered: Subtract the square of the running mean from v, so that it is a variance.
    Source: Tieleman & Hinton 2012, lecture 6.5 of Neural Networks for Machine Learning, as in torch.
    """

    torch_name: ClassVar[str] = "RMSprop"

    alpha: float = number(0.99, ge=0, lt=1)
    eps: float = number(1e-8, gt=0)
    momentum: float = number(0.0, ge=0, lt=1)
    centered: bool = flag(False)
