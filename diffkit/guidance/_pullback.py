"""Gradients with respect to noisy data, inside and outside of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pullback = Callable[[Tensor], Tensor]
"""v -> v^T J, of x's shape."""


def value_and_pullback(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pullback]:
    """Return ``function(x)`` and the map from v to v^T J at x.

    Outside of a compiled graph autograd is used, which knows checkpointed and hand-written layers; inside, torch.func,
    which can be traced. If someone else is differentiating by x already, the result stays differentiable.
    """
    if torch.compiler.is_compiling():
        found: Any = torch.func.vjp(function, x)
        return found[0], lambda v: found[1](v)[0]
    nested = x.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if nested else x.detach().requires_grad_()
        value = function(at)

    def pullback(v: Tensor) -> Tensor:
        if not value.requires_grad:  # a constant function
            return torch.zeros_like(x)
        return torch.autograd.grad(
            value, at, v, retain_graph=True, create_graph=nested, allow_unused=True, materialize_grads=True
        )[0]

    return (value if nested else value.detach()), pullback


def row_gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient by each row of x of its own value: log_prob maps (B, C, *S) to (B,)."""
    value, pullback = value_and_pullback(log_prob, x)
    return pullback(torch.ones_like(value))
