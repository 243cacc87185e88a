"""NaN and infinity in a batch of tensors: which examples have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SHOWN = 4


def rows_not_finite(values: Tensor) -> list[int]:
    """Return the rows of a tensor (B, ...) with NaN or infinity, ascending; the host waits for the device."""
    if not values.is_floating_point() or not values.numel() or bool(torch.isfinite(values).all()):
        return []
    rows = values.reshape(len(values), -1).isfinite().all(1)
    return [int(row) for row in (~rows).nonzero().flatten()]


def examples_hold(rows: Sequence[int]) -> str:
    """Return a text that names the examples with values that are not finite: "example 5 holds NaN or infinity"."""
    if len(rows) == 1:
        return f"example {rows[0]} holds NaN or infinity"
    return f"examples {', '.join(map(str, rows[:_SHOWN]))}{', ...' if len(rows) > _SHOWN else ''} hold NaN or infinity"
