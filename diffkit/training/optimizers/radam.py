"""Adam with a rectified variance: no warm-up is needed."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch, moment_rates


@registry("optimizer").register("radam")
@frozen
class RAdam(OfTorch):
    """Adam with a rectified variance: no warm-up is needed.

    AdamW's step times ``r_n``, which rises to 1 with the number of squares that v averages; the first updates, where
    their variance is not finite, are those of momentum alone.

    Attributes:
        betas: Decay rates of the two running moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0.
        decoupled_weight_decay: Weight decay apart from the gradient, as AdamW has it.
    Source: Liu et al. 2020, arXiv:1908.03265, algorithm 2.
    """

    torch_name: ClassVar[str] = "RAdam"

    betas: tuple[float, ...] = moment_rates()
    eps: float = number(1e-8, gt=0)
    decoupled_weight_decay: bool = flag(True)
