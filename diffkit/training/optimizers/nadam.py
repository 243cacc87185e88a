"""Adam with Nesterov's momentum."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch, moment_rates


@registry("optimizer").register("nadam")
@frozen
class NAdam(OfTorch):
    """Adam with Nesterov's momentum.

    AdamW's step, with ``mu' m + (1 - mu) g`` in place of m, where ``mu = beta1 (1 - 0.96^(n momentum_decay) / 2)`` at
    this update and mu' at the next.

    Attributes:
        betas: Decay rates of the two running moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0.
        momentum_decay: How fast mu rises to beta1, > 0.
        decoupled_weight_decay: Weight decay apart from the gradient, as AdamW has it.
    Source: Dozat 2016, Incorporating Nesterov Momentum into Adam, as in torch.
    """

    torch_name: ClassVar[str] = "NAdam"

    betas: tuple[float, ...] = moment_rates()
    eps: float = number(1e-8, gt=0)
    momentum_decay: float = number(4e-3, gt=0)
    decoupled_weight_decay: bool = flag(True)
