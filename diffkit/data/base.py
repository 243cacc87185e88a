"""The contract between data and training, and how batches of it are put together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data.conditions import as_condition, together
from diffkit.data.skipping import Skipping
from diffkit.errors import DataError

Image = Tensor | NDArray[Any]
Indices = Sequence[int] | NDArray[np.int64]


@runtime_checkable
class MapData(Protocol):
    """Anything with a length, items and three attributes can be trained on.

    Attributes:
        shape: Shape of one example, (C, *S).
        bins: How many equally spaced values an example takes: integers 0..bins-1 stand for them, 256 is 8-bit.
            None is continuous data, in whatever units it is given.
        classes: Names of the classes that the condition "y" counts; None if there are none.
    """

    shape: tuple[int, ...]
    bins: int | None
    classes: tuple[str, ...] | None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, Any]]:
        """Return example ``index`` and its conditions, each a number, a tensor or a text, or a mapping or list of such.

        The class ``y`` counts from 0; -1 means that the example has no class.

        The example is (C, *S), integers if there are bins, or floating point in [-1, 1]; any floating point if there
        are none.
        """


class Data(MapData):
    """Data that also reads many examples at a time and describes itself."""

    @abstractmethod
    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices."""

    def describe(self) -> dict[str, Any]:
        """Return plain facts that are saved with a run; "source" names where the data came from."""
        return description(self)


class Batch(NamedTuple):
    """Some examples.

    Attributes:
        indices: Which, (B,) int64.
        images: As the data gives them, (B, C, *S).
        conditions: For each name, (B, ...); a list of texts; or a mapping or tuple of such. A label ``y`` of -1
            means that the example has no class.
    """

    indices: Tensor
    images: Tensor
    conditions: dict[str, Any]


class Stacked(Data):
    """Data of any class that honours `MapData`, read one example at a time.

    Args:
        data: The data.
        skipping: What to do about examples that cannot be read; None raises the data's own error.
    """

    def __init__(self, data: MapData, skipping: Skipping | None = None):
        self.data = data
        self.skipping = skipping or Skipping(len(data), "stop")
        self.shape, self.bins, self.classes = tuple(data.shape), data.bins, data.classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, Any]]:
        """Return example ``index`` and its conditions."""
        return self.data[index]

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices.

        Raises:
            DataError: An example has another shape, or other conditions, than the rest.
        """
        images, conditions = [], []
        picked = [int(i) for i in indices]
        for i in picked:
            _, (image, found) = self.skipping.read(i, self._read)
            images.append(image)
            conditions.append(found)
        return Batch(torch.tensor(picked), _together(images, picked), _stacked(conditions, picked))

    def _read(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return example ``index`` as tensors, or raise a `DataError` that names it, whatever the data raised."""
        try:
            image, found = self.data[index]
            image = torch.as_tensor(image)
            conditions = {name: as_condition(value) for name, value in found.items()}
        except DataError:
            raise
        except Exception as error:  # code of the user's, and of any library
            raise DataError(f"example {index} cannot be read: {type(error).__name__}: {error}") from error
        if tuple(image.shape) != self.shape:
            raise DataError(f"example {index} has shape {tuple(image.shape)}, but the data has shape {self.shape}")
        return image, conditions


def _together(images: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Images in one tensor; all must have one dtype, or integers would become floating point unnoticed."""
    for i, image in zip(indices, images, strict=True):
        if image.dtype != images[0].dtype:
            raise DataError(
                f"example {i} is of {image.dtype}, example {indices[0]} of {images[0].dtype}; give one type"
            )
    return torch.stack(list(images))


def _stacked(conditions: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> dict[str, Any]:
    names = conditions[0].keys()
    for i, found in zip(indices, conditions, strict=True):
        if found.keys() != names:
            raise DataError(f"example {i} has conditions {sorted(found)}, example {indices[0]} has {sorted(names)}")
    return {name: together(name, [found[name] for found in conditions], indices) for name in names}


def description(data: MapData) -> dict[str, Any]:
    """Return the facts of the data that must not change when a run is resumed."""
    classes = None if data.classes is None else list(data.classes)
    return {"examples": len(data), "shape": list(data.shape), "bins": data.bins, "classes": classes}


def scaled(images: Tensor, bins: int | None) -> Tensor:
    """Return images as float32: integers 0..bins-1 become equally spaced values in [-1, 1], u / 127.5 - 1 for 8 bits.

    Floating point is taken as it is.
    """
    if images.is_floating_point() or bins is None:
        return images.float()
    return images.float().div_((bins - 1) / 2).sub_(1)
