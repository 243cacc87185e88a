"""Stops training when the loss is low enough.

Usage:

    system = diffkit.compose(schedule="cosine", backbone="mlp", data_shape=(1, 8, 8), num_steps=20, bins=None)
    images = system.sample(16, steps=2, progress=False)
    diffkit.train(system, images, out="run", steps=9, batch_size=8, log_every=1, hooks=("my_part", {"loss": 2.0}))
"""

from __future__ import annotations

from attrs import frozen

from diffkit.options import integer, number
from diffkit.training import Hook, HookFacts, HookResult, HookState

__all__ = ["MyPart"]


@frozen
class MyPart(Hook):
    """Stops training when the loss is low enough.

    Attributes:
        loss: Largest mean loss of a line of metrics that is low enough.
        times: Lines in a row in which it has to be, >= 1.
    Source: which paper, which equation.
    """

    loss: float = number(0.01)
    times: int = integer(1, ge=1)

    def init(self) -> HookState:
        """Return the state at the start of a run: plain data and tensors, which checkpoints hold."""
        return {"low": 0}

    def after_line(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called after each line of metrics; `diffkit.training.Hook` has the other moments."""
        if "loss" not in facts.metrics:  # the line of a validation
            return None
        value = facts.metrics["loss"]
        low = state["low"] + 1 if value is not None and value <= self.loss else 0
        return HookResult({"low": low}, stop=f"the loss is {value:.4g}" if low >= self.times else "")
