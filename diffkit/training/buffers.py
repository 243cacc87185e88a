"""Copies of a network's buffers, such as the running means of batch normalization, to restore after a failed update."""

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
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        ]
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the buffers, before an update."""
        buffers = [module._buffers[name] for module, name in self._places]
        self._copies = [buffer.clone() for buffer in buffers if buffer is not None]

    def discard(self) -> None:
        """Drop the copies, after an update; the buffers stay as they are now."""
        self._copies = []

    def restore(self) -> None:
        """Restore the buffers from the copies."""
        for (module, name), copy in zip(self._places, self._copies, strict=False):
            module._buffers[name] = copy
