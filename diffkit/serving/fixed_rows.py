"""A network that is called with the same number of rows every time, so that its results depend on no other row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffkit.options import check_integer
from diffkit.system.conditions import rows_of


class FixedRows(nn.Module):
    """Calls a network with exactly ``rows`` rows: fewer are padded with the last one, more are split.

    Kernels choose the order of their sums by the size of a batch, so the same row may differ in its last bits from one
    size to another. With ``model=FixedRows(system.network, 8)`` samples are the same in any batch, and in a
    `diffkit.serving.Loop` whatever its load, where the network computes each row of such a batch alike.

    Args:
        network: The network.
        rows: Rows of each call, >= 1.
    """

    def __init__(self, network: nn.Module, rows: int):
        super().__init__()
        self.network = network
        self.rows = check_integer("rows", rows, ge=1)

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return the network's output, (B, ...)."""
        inputs, batch, found = {"x": x, "time": time, **conditions}, len(x), []
        for start in range(0, batch, self.rows):
            rows = torch.arange(start, start + self.rows, device=x.device).clamp_(max=batch - 1)
            given = rows_of(inputs, rows)
            found.append(self.network(given.pop("x"), given.pop("time"), **given))
        return torch.cat(found)[:batch]
