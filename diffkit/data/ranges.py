"""Where continuous values lie, from some examples: what was meant for [-1, 1] may be 0..255."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

from diffkit.data.base import Data, scaled

_LOOKED_AT = 64
_LARGE, _SMALL = 4.0, 0.05
"""Root mean squares that no data of about unit size has: that of values spread over [-1, 1] is 0.58, of standardized
ones 1, and networks of latents are trained on 0.5 to 2."""


@frozen
class Range:
    """Where the values of some examples lie.

    Attributes:
        low: The smallest.
        high: The largest.
        size: Their root mean square.
    """

    low: float
    high: float
    size: float

    def __str__(self) -> str:
        return f"{self.low:.4g}..{self.high:.4g}"

    @property
    def remark(self) -> str | None:
        """What to do about values that are not centred, or not of about unit size; None for those that are."""
        if self.low < 0 and _SMALL <= self.size <= _LARGE:
            return None
        return f"values lie in {self}; networks expect about [-1, 1]: store images as uint8, or scale the values"


def range_of(data: Data) -> Range | None:
    """Return where the values of some examples lie, spread evenly over the data; None if data is on bins."""
    if data.bins is not None or len(data) < 1:
        return None
    low, high, squares = float("inf"), -float("inf"), list[float]()
    for i in np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64)):
        values = scaled(data.batch([int(i)]).images, None)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        squares.append(float(values.double().square().mean()))
    return Range(low, high, float(torch.tensor(squares).mean().sqrt()))
