"""Adam with weight decay apart from the gradient."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch, moment_rates


@registry("optimizer").register("adamw")
@frozen
class AdamW(OfTorch):
    """Adam with weight decay apart from the gradient.

    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
    w <- w - lr weight_decay w - lr m' / (sqrt(v') + eps),  m' = m / (1 - beta1^n), v' = v / (1 - beta2^n)

    Attributes:
        betas: Decay rates of the two running moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0.
        amsgrad: Divide by the largest v so far.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    torch_name: ClassVar[str] = "AdamW"
    fused: ClassVar[bool] = True

    betas: tuple[float, ...] = moment_rates()
    eps: float = number(1e-8, gt=0)
    amsgrad: bool = flag(False)
