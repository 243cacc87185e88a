"""Adam with the largest gradient in place of the root of their mean square."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch, moment_rates


@registry("optimizer").register("adamax")
@frozen
class Adamax(OfTorch):
    """Adam with the largest gradient in place of the root of their mean square.

    g <- g + weight_decay w
    m <- beta1 m + (1 - beta1) g,  u <- max(beta2 u, |g| + eps),  w <- w - lr m / ((1 - beta1^n) u)

    Attributes:
        betas: Decay rates of the two running moments, each in [0, 1).
        eps: Added to the size of the gradient, > 0.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2.
    """

    torch_name: ClassVar[str] = "Adamax"

    betas: tuple[float, ...] = moment_rates()
    eps: float = number(1e-8, gt=0)
