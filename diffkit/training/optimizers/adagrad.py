"""The gradient over the root of the sum of all squares so far."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch


@registry("optimizer").register("adagrad")
@frozen
class Adagrad(OfTorch):
    """The gradient over the root of the sum of all squares so far.

    g <- g + weight_decay w
    v <- v + g^2,  w <- w - lr / (1 + (n - 1) lr_decay) g / (sqrt(v) + eps)

    Attributes:
        lr_decay: How fast the learning rate falls besides, >= 0.
        initial_accumulator_value: The sum at first, >= 0.
        eps: Added to its root, > 0.
    Source: Duchi et al. 2011, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization.
    """

    torch_name: ClassVar[str] = "Adagrad"

    lr_decay: float = number(0.0, ge=0)
    initial_accumulator_value: float = number(0.0, ge=0)
    eps: float = number(1e-10, gt=0)
