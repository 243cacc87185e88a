"""Buffers that a network changes as it is called, such as running means: restored after a failed update."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """A copy of a network's buffers from before the current update.

    All are copied, as torch's version counter misses the writes of batch normalization.

    Args:
        network: The network; only buffers that its state dict has are copied.
    """

    def __init__(self, network: nn.Module):
        self._places = [
            (module, name)
            for module in network.modules()
            for name, held in module._buffers.items()
            if held is not None and name not in module._non_persistent_buffers_set
        ]
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers, before an update."""
        held = [module._buffers[name] for module, name in self._places]
        self._copies = [tensor.clone() for tensor in held if tensor is not None]

    def forget(self) -> None:
        """Drop the copies, after an update; the buffers stay as they are now."""
        self._copies = []

    def undo(self) -> None:
        """Restore the buffers from the copies."""
        for (module, name), copy in zip(self._places, self._copies, strict=False):
            module._buffers[name] = copy
