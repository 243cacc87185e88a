"""Measure the options of a codec on data, such as the mean and std of 'standardize'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from diffkit.data.base import Data, scale_images
from diffkit.data.finite import find_not_finite
from diffkit.data.loading import as_data
from diffkit.errors import DataError
from diffkit.protocols import Codec, MeasuredCodec
from diffkit.registry.resolve import Slot, resolve

MOST = 2**16
"""Largest number of examples that are read; a mean of so many is exact to 0.4 % of a standard deviation."""
_BATCH = 256


def measured(codec: Slot, data: Any) -> Codec:
    """Return a codec with the options that it lacks, measured on data; unchanged if it lacks none.

    Args:
        codec: A name, a pair such as ("standardize", {"per": "whole"}), or an instance.
        data: As in `diffkit.train`; of more than 65,536 examples so many are read, spread evenly.
    Raises:
        DataError: An example holds NaN or an infinity, or cannot be read.
    """
    part: Codec = resolve("codec", codec)[0]
    if not isinstance(part, MeasuredCodec) or part.measured:
        return part
    found = as_data(data)
    part.latent_shape(tuple(found.shape))  # raises if given options do not fit
    return part.measure(_batches(found))


def _batches(data: Data) -> Iterator[Tensor]:
    count = min(len(data), MOST)
    if not count:
        raise DataError("there is no data to measure")
    chosen = np.linspace(0, len(data) - 1, count).round().astype(np.int64)
    for start in range(0, count, _BATCH):
        batch = data.batch(chosen[start : start + _BATCH])
        for fault in find_not_finite(batch):
            raise DataError(fault)
        yield scale_images(batch.images, data.bins)
