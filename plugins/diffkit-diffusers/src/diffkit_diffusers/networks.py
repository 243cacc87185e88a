"""A model of diffusers behind diffkit's calling convention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LabelledNetwork(nn.Module):
    """``forward(x, time, y=None)`` in place of ``model(sample, timestep, class_labels).sample``.

    Attributes:
        model: The model of diffusers; save it with its own ``save_pretrained``.
        looks_up_time: The model has a table of times, and so needs integers.
    """

    def __init__(self, model: Any, looks_up_time: bool = False):
        super().__init__()
        self.model = model
        self.looks_up_time = looks_up_time

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the model's output.

        Args:
            x: Noisy data, (B, C, H, W).
            time: Position in diffusers' chain, (B,), 0 for level 1.
            y: Labels, (B,) int64.
        """
        time = time.round().long() if self.looks_up_time else time
        out: Tensor = self.model(x, time, class_labels=y, return_dict=False)[0]
        return out
