"""Data for super-resolution: every example has a smaller copy of itself as the condition ``low_res``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices, scale_images
from diffkit.data.loading import as_data
from diffkit.errors import DataError, OptionError

CONDITION = "low_res"


class LowRes(Data):
    """Data for super-resolution: other data with the condition ``low_res``, the example shrunk by area averaging.

    A network that reads this condition (the ``unet`` with as many ``low_res_channels`` as the data has channels) learns
    to upsample; `diffkit.tasks.super_resolve` and ``diffkit sample --low-res`` use it.

    Args:
        data: The large images: anything that `diffkit.data.loading.as_data` takes.
        size: Height and width of the small images, at most those of the data; one number for a square.
    Attributes:
        data: The data without the condition.
        size: Size of the small images, one number for each spatial axis.
    Raises:
        OptionError: The size does not fit the data's axes, or is larger than the data.
        DataError: The data has no spatial axes, or a condition low_res already.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, and its published super_res_train: area interpolation of the
        large image in [-1, 1].
    """

    def __init__(self, data: Any, size: int | tuple[int, ...]):
        self.data = as_data(data)
        self.shape, self.bins, self.classes = tuple(self.data.shape), self.data.bins, self.data.classes
        self.sequential = self.data.sequential
        self.size = low_res_size(self.shape, size)
        if len(self.data) and CONDITION in self.data.batch([0]).conditions:
            raise DataError("the data gives a condition low_res already; use that, or remove it from the data")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return example ``index``, and its conditions with ``low_res``, (C, *size) float32 in [-1, 1]."""
        batch = self.batch([index])
        return batch.images[0], {name: value[0] for name, value in batch.conditions.items()}

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices; ``low_res`` is (B, C, *size) float32 in [-1, 1]."""
        found = self.data.batch(indices)
        return found._replace(
            conditions={**found.conditions, CONDITION: shrink_images(found.images, self.bins, self.size)}
        )

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, and the size of the small images."""
        return {**self.data.describe(), CONDITION: list(self.size)}


def shrink_images(images: Tensor, bins: int | None, size: tuple[int, ...]) -> Tensor:
    """Shrink images to low resolution by area averaging, (B, C, *size) float32.

    Args:
        images: The images as the data has them, (B, C, *S).
        bins: Number of values that they take; integers 0..bins-1 are scaled to [-1, 1] first.
        size: Size of the result, one number for each spatial axis.
    """
    return F.interpolate(scale_images(images, bins), size, mode="area")


def low_res_size(shape: tuple[int, ...], size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the size of low-resolution images for data of a shape, one number for each spatial axis.

    Raises:
        OptionError: The size has another number of axes, or is larger than the data.
        DataError: The data has no spatial axes that can be shrunk, or more than three.
    """
    axes = len(shape) - 1
    if not 1 <= axes <= 3:
        raise DataError(f"data of shape {shape} cannot be shrunk; images have one to three axes besides the channels")
    sizes = (size,) if isinstance(size, int) else tuple(size)
    found = sizes * axes if len(sizes) == 1 else sizes
    if len(found) != axes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in found):
        raise OptionError(f"must be one size >= 1, or {axes}, for data of shape {shape}", option="low_res", value=size)
    if any(small > large for small, large in zip(found, shape[1:], strict=True)):
        raise OptionError(f"must not be larger than the data, {shape[1:]}", option="low_res", value=found)
    return found
