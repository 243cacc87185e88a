"""The range of data's values, found from some examples: data should be in [-1, 1], but may be in 0..1 or 0..255."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

from diffkit.data.base import Data, scale_images
from diffkit.data.finite import find_not_finite
from diffkit.errors import DataError, problem

_LOOKED_AT = 64
_LARGE, _SMALL = 4.0, 0.05
"""Root mean squares above and below those of usual data: values spread over [-1, 1] have 0.58, standardized values 1,
and latents that networks are trained on 0.5 to 2."""
_OFF_CENTRE = 0.9
"""Mean in units of the root mean square from which values are not centred: two standard deviations."""
_CLOSE = 1e-4
"""Tolerance for rounding beyond -1 and 1."""


@frozen
class ValueRange:
    """Range of the values of some examples.

    Attributes:
        low: The smallest value.
        high: The largest value.
        size: Root mean square of the values.
        mean: Their mean.
    """

    low: float
    high: float
    size: float
    mean: float = 0.0

    def __str__(self) -> str:
        return f"{self.low:.4g}..{self.high:.4g}"

    @property
    def remark(self) -> str | None:
        """Advice if values are not centred or not of about unit size; else None."""
        centred = self.mean**2 < _OFF_CENTRE**2 * self.size**2
        if self.low < 0 and centred and _SMALL <= self.size <= _LARGE:
            return None
        return f"values lie in {self}; networks expect about [-1, 1]: {self.remedy}"

    @property
    def remedy(self) -> str:
        """Advice how to scale the values to [-1, 1]."""
        if self.low >= 0 and self.high <= 1:
            return "scale them by 2 * x - 1"
        if self.low >= 0 and self.high <= 255:
            return "store images as uint8, or scale them by x / 127.5 - 1"
        return "store images as uint8, or scale the values, such as by codec 'standardize'"


def range_of(data: Data) -> ValueRange | None:
    """Return the range of values of continuous data, from some examples spread evenly; None for data on bins.

    Raises:
        DataError: An example holds NaN or an infinity.
    """
    if data.bins is not None or len(data) < 1:
        return None
    low, high, squares, means = float("inf"), -float("inf"), list[float](), list[float]()
    for i in np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64)):
        batch = data.batch([int(i)])
        for fault in find_not_finite(batch):
            raise DataError(fault)
        values = scale_images(batch.images, None)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        squares.append(float(values.double().square().mean()))
        means.append(float(values.double().mean()))
    return ValueRange(low, high, float(torch.tensor(squares).mean().sqrt()), sum(means) / len(means))


def check_unit_range(low: float, high: float, what: str) -> None:
    """Raise if floating-point data with bins has a range outside [-1, 1], or the range [0, 1] of many readers.

    Args:
        low, high: Smallest and largest value.
        what: Name of the values in errors.
    Raises:
        DataError: The range is wrong; the text explains how to scale the values.
    """
    if not (low >= -1 - _CLOSE and high <= 1 + _CLOSE):
        raise DataError(f"{what} must lie in [-1, 1], got values in [{low:g}, {high:g}]")
    if low >= 0 and high > 0:
        raise DataError(f"{what} must lie in [-1, 1], got values in [{low:g}, {high:g}]; scale them by 2 * x - 1")


def bins_advice(data: Data, bins: int | None) -> str:
    """Return advice on data that has other bins than a system, from the range of its values."""
    found = range_of(data) if bins is not None else None
    if found is not None and found.low >= 0 and found.high <= 1:
        return f"; its values lie in {found}: scale images by 2 * x - 1 and load them with bins={bins}"
    if found is not None and found.low >= 0 and found.high <= 255:
        return f"; its values lie in {found}: give images as uint8"
    images = found is not None and -1 - _CLOSE <= found.low < 0 and found.high <= 1 + _CLOSE
    return problem(f"; load images with bins={bins}" if images else "", fix={"bins": data.bins})
