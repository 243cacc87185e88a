"""The range of continuous values, from some examples: data meant for [-1, 1] may be 0..1 or 0..255."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

from diffkit.data.base import Data, scaled
from diffkit.data.finite import not_finite
from diffkit.errors import DataError, problem

_LOOKED_AT = 64
_LARGE, _SMALL = 4.0, 0.05
"""Root mean squares that no data of about unit size has: that of values spread over [-1, 1] is 0.58, of standardized
ones 1, and networks of latents are trained on 0.5 to 2."""
_CLOSE = 1e-4
"""Tolerance for rounding beyond -1 and 1."""


@frozen
class Range:
    """Range of the values of some examples.

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
        return f"values lie in {self}; networks expect about [-1, 1]: {self.remedy}"

    @property
    def remedy(self) -> str:
        """How to scale such values to [-1, 1]."""
        if self.low >= 0 and self.high <= 1:
            return "scale them by 2 * x - 1"
        if self.low >= 0 and self.high <= 255:
            return "store images as uint8, or scale them by x / 127.5 - 1"
        return "store images as uint8, or scale the values"


def range_of(data: Data) -> Range | None:
    """Return where the values of some examples lie, spread evenly over the data; None if data is on bins.

    Raises:
        DataError: An example holds NaN or an infinity.
    """
    if data.bins is not None or len(data) < 1:
        return None
    low, high, squares = float("inf"), -float("inf"), list[float]()
    for i in np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64)):
        batch = data.batch([int(i)])
        for fault in not_finite(batch):
            raise DataError(fault)
        values = scaled(batch.images, None)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        squares.append(float(values.double().square().mean()))
    return Range(low, high, float(torch.tensor(squares).mean().sqrt()))


def check_unit(low: float, high: float, what: str) -> None:
    """Refuse floating point with bins that does not lie in [-1, 1], or lies in [0, 1] as most readers leave it.

    Args:
        low, high: Where the values lie.
        what: Their name in errors.
    Raises:
        DataError: They do not; the text explains how to scale them.
    """
    if not (low >= -1 - _CLOSE and high <= 1 + _CLOSE):
        raise DataError(f"{what} must lie in [-1, 1], got values in [{low:g}, {high:g}]")
    if low >= 0 and high > 0:
        raise DataError(f"{what} must lie in [-1, 1], got values in [{low:g}, {high:g}]; scale them by 2 * x - 1")


def bins_advice(data: Data, bins: int | None) -> str:
    """Return what to do with data that has other bins than a system: images are to be scaled, not continuous."""
    found = range_of(data) if bins is not None else None
    if found is not None and found.low >= 0 and found.high <= 1:
        return f"; its values lie in {found}: scale images by 2 * x - 1 and load them with bins={bins}"
    if found is not None and found.low >= 0 and found.high <= 255:
        return f"; its values lie in {found}: give images as uint8"
    images = found is not None and -1 - _CLOSE <= found.low < 0 and found.high <= 1 + _CLOSE
    return problem(f"; load images with bins={bins}" if images else "", fix={"bins": data.bins})
