"""Large batches on a CPU, evaluated some examples at a time where no gradients are recorded.

Activations then stay in cache, and in memory that the process keeps: an allocator returns large blocks to the system,
and each new one is filled with zeros first. 256 images of 32x32 by a U-Net of 64 channels take two thirds of the time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffkit.parts.backbones._context import Context
from diffkit.parts.backbones._normalize import HOOKS
from diffkit.tensors import is_ordinary

SLICE_BYTES = 1 << 22
"""Size of an activation of one slice; the largest in a U-Net is two or three times as large."""
MIN_ROWS = 8
"""Fewer examples at a time would make products of matrices slower than memory does."""


def in_slices(
    network: nn.Module,
    evaluate: Callable[[Tensor, Tensor, Context | None], Tensor],
    x: Tensor,
    emb: Tensor,
    context: Context | None,
    values: int,
) -> Tensor:
    """Return ``evaluate(x, emb, context)``, some examples at a time where that is faster and nothing can tell.

    Args:
        network: Evaluated by `evaluate`; its examples stay together in training mode, and with hooks on its layers.
        evaluate: Independent for each example.
        x: (B, ...).
        emb: (B, E), or (1, E) for all.
        context: That of every example, or None.
        values: Numbers in one example's activations at full size.
    """
    if torch.is_grad_enabled() or network.training or not is_ordinary(x) or not x.is_cpu:
        return evaluate(x, emb, context)
    rows = max(MIN_ROWS, SLICE_BYTES // (values * x.element_size())) * torch.get_num_threads()
    if x.shape[0] <= rows or _has_hooks(network):
        return evaluate(x, emb, context)
    shared = emb.shape[0] == 1
    pieces = (slice(i, i + rows) for i in range(0, x.shape[0], rows))
    return torch.cat(
        [
            evaluate(x[piece], emb if shared else emb[piece], None if context is None else context.rows(piece))
            for piece in pieces
        ]
    )


def _has_hooks(network: nn.Module) -> bool:
    """Whether a layer has hooks, which would see slices."""
    return any(layer.__dict__.get(hooks) for layer in network.modules() if layer is not network for hooks in HOOKS)
