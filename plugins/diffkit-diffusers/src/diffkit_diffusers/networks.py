"""A model of diffusers behind diffkit's calling convention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffkit import OptionError


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


class ContextNetwork(nn.Module):
    """``forward(x, time, *, context, context_mask=None, y=None)`` in place of ``model(sample, timestep, ...).sample``.

    Attributes:
        model: The model of diffusers; save it with its own ``save_pretrained``.
        width: Width of the vectors of the context.
    """

    def __init__(self, model: Any, width: int):
        super().__init__()
        self.model, self.width = model, width

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        context: Tensor | float | None = None,
        context_mask: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Return the model's output.

        Args:
            x: Noisy data, (B, C, H, W).
            time: Position in diffusers' chain, (B,), 0 for level 1.
            context: Vectors to attend to, (B, L, width), or 0 for none.
            context_mask: Which of them are there, (B, L) bool, or 1 and 0; all of them by default.
            y: Labels, (B,) int64.
        """
        if context is None:
            raise OptionError(f"context is missing; pass context, ({len(x)}, L, {self.width}), or context=0 for none")
        mask = None
        if not isinstance(context, Tensor) or context.ndim < 2:
            filled = torch.as_tensor(context, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
            context = filled.expand(len(x), 1, self.width)
        elif context_mask is not None:
            mask = context_mask.to(x.device) != 0
            context = context.masked_fill(~mask[..., None], 0)  # so that a context that is all masked is that of zeros
        out: Tensor = self.model(
            x, time, context.to(x.dtype), class_labels=y, encoder_attention_mask=mask, return_dict=False
        )[0]
        return out
