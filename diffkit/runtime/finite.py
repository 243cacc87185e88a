"""Values that are not finite: which examples hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SHOWN = 4


def rows_not_finite(values: Tensor) -> list[int]:
    """Return the rows of (B, ...) that hold NaN or an infinity, ascending; synchronizes."""
    if not values.is_floating_point() or not values.numel() or bool(torch.isfinite(values).all()):
        return []
    rows = values.reshape(len(values), -1).isfinite().all(1)
    return [int(row) for row in (~rows).nonzero().flatten()]


def examples_hold(rows: Sequence[int]) -> str:
    """Return the text about such examples: ``example 5 holds NaN or infinity``, or some of many."""
    if len(rows) == 1:
        return f"example {rows[0]} holds NaN or infinity"
    return f"examples {', '.join(map(str, rows[:_SHOWN]))}{', ...' if len(rows) > _SHOWN else ''} hold NaN or infinity"
