"""Buffers that a network changes as it is called, such as running means: a failed update leaves no trace in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """What the buffers of a network held before the update at hand.

    All are copied, as torch does not count what batch normalization writes into its own.

    Args:
        network: Whose buffers; those that no state dict has do not count.
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
        """Copy them, before an update."""
        held = [module._buffers[name] for module, name in self._places]
        self._copies = [tensor.clone() for tensor in held if tensor is not None]

    def forget(self) -> None:
        """Drop the copies, after an update: what was done to them stays."""
        self._copies = []

    def undo(self) -> None:
        """Take back what was done to them since."""
        for (module, name), copy in zip(self._places, self._copies, strict=False):
            module._buffers[name] = copy
