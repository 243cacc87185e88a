"""The torch optimizer of the part beside it."""

from __future__ import annotations

from typing import Any

import torch


class SignDescent(torch.optim.Optimizer):
    """Steps of the size of the learning rate in every element, against the sign of the gradient's running mean.

    Args:
        groups: Groups of parameters, each with "lr" and "weight_decay".
        momentum: Decay rate of the running mean, in [0, 1).
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float):
        super().__init__(groups, {})
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]  # tensors and numbers, which checkpoints hold
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1 - self.momentum)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(state["mean"].sign(), alpha=-group["lr"])
