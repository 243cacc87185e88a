"""How often an update of training calls the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffkit.protocols import Model, NetworkLoss
from diffkit.system.objective import Objective, tried


def network_calls(objective: Objective) -> str:
    """Return how often an update calls the network, in words, if that is not once; else nothing.

    It is counted, in one evaluation of the loss with a network that returns zeros.
    """
    if objective.parts.self_conditioned:
        return "1 of the network, 1 for its previous estimate, without gradient"
    if not isinstance(objective.parts.loss, NetworkLoss):
        return ""
    calls = dict.fromkeys(("network", "teacher", "derivative"), 0)

    def counting(name: str, out: Tensor) -> Model:
        def model(x: Tensor, time: Tensor, **_: Any) -> Tensor:
            differentiated = forward_ad._current_level >= 0 or x.requires_grad
            calls["derivative" if differentiated and name == "network" else name] += 1
            return out

        return model

    shape = objective.parts.data_shape
    teacher = counting("teacher", torch.zeros(1, objective.parts.out_channels, *shape[1:], device="cpu"))
    if tried(objective, np.ones(1, np.int64), lambda out: counting("network", out), teacher) is None:
        return "not counted, as the loss cannot be tried"
    words = {"network": "of the network", "teacher": "of the teacher", "derivative": "for a derivative, of 4 to 9 each"}
    return ", ".join(f"{count} {words[name]}" for name, count in calls.items() if count)
