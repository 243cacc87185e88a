"""Protocols of data for training, `MapData` and `Data`, and how batches are made from examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data.conditions import are_ragged, as_condition, collate_condition
from diffkit.data.skipping import Skipping
from diffkit.errors import DataError
from diffkit.system.sequences import pad_sequences

Image = Tensor | NDArray[Any]
Indices = Sequence[int] | NDArray[np.int64]


@runtime_checkable
class MapData(Protocol):
    """Protocol of data to train on: a length, items and three attributes.

    Attributes:
        shape: Shape of one example, (C, *S).
        bins: Number of equally spaced values that data takes, given as integers 0..bins-1; 256 for 8-bit images. None
            for continuous data, in any units.
        classes: Names of the classes that the condition "y" numbers; None if there are none.
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

        Classes ``y`` are numbered from 0; -1 means that the example has no class.

        The example is (C, *S). With bins it is integers, or floating point in [-1, 1]; without, any floating point.
        """


class Data(MapData):
    """Protocol of data to train on that also reads many examples at a time and describes itself.

    Attributes:
        deterministic: Whether reading draws no random numbers, so that no generator has to be seeded for it.
        sequential: Whether training takes the examples in their own order, as reading in another is slow.
    """

    deterministic: bool = False
    sequential: bool = False

    @abstractmethod
    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices."""

    def describe(self) -> dict[str, Any]:
        """Return facts of the data as plain values, which are saved with a run; "source" is its name."""
        return description(self)


class Batch(NamedTuple):
    """A batch of examples, as `Data.batch` returns it.

    Attributes:
        indices: Their indices in the data, (B,) int64.
        images: The examples, as the data has them, (B, C, *S).
        conditions: By name, (B, ...); a list of texts; or a mapping or tuple of these. A label ``y`` of -1 means that
            the example has no class.
    """

    indices: Tensor
    images: Tensor
    conditions: dict[str, Any]


class BatchedData(Data):
    """Any `MapData` as `Data`: reads its examples one at a time and puts them into batches.

    Args:
        data: The data.
        skipping: What to do about examples that cannot be read; None raises an error.
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
        """Read the examples with these indices one at a time, and return them as a batch.

        Raises:
            DataError: An example has another shape, or other conditions, than the rest.
        """
        images, conditions = [], []
        picked = [int(i) for i in indices]
        for i in picked:
            _, (image, found) = self.skipping.read(i, self._read)
            images.append(image)
            conditions.append(found)
        return Batch(torch.tensor(picked), _stack_images(images, picked), _stack_conditions(conditions, picked))

    def _read(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return example ``index`` as tensors; any error of the data becomes a `DataError` that names the example."""
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


def _stack_images(images: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Return images as one tensor; all must have one dtype, or integers would become floating point unnoticed."""
    for i, image in zip(indices, images, strict=True):
        if image.dtype != images[0].dtype:
            raise DataError(
                f"example {i} is of {image.dtype}, example {indices[0]} of {images[0].dtype}; give one type"
            )
    return torch.stack(list(images))


def _stack_conditions(conditions: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> dict[str, Any]:
    names = conditions[0].keys()
    for i, found in zip(indices, conditions, strict=True):
        if found.keys() != names:
            raise DataError(f"example {i} has conditions {sorted(found)}, example {indices[0]} has {sorted(names)}")
    collated: dict[str, Any] = {}
    for name in names:
        values = [found[name] for found in conditions]
        if are_ragged(values) and f"{name}_mask" not in names:
            collated[name], collated[f"{name}_mask"] = pad_sequences(values)
        else:
            collated[name] = collate_condition(name, values, indices)
    return collated


def description(data: MapData) -> dict[str, Any]:
    """Return the facts of the data that must not change when a run is resumed."""
    classes = None if data.classes is None else list(data.classes)
    return {"examples": len(data), "shape": list(data.shape), "bins": data.bins, "classes": classes}


def scale_images(images: Tensor, bins: int | None) -> Tensor:
    """Scale images to [-1, 1], float32: integers u in 0..bins-1 become 2 u / (bins - 1) - 1, u / 127.5 - 1 for 8 bits.

    Floating-point images are not scaled.
    """
    if images.is_floating_point() or bins is None:
        return images.float()
    return images.float().div_((bins - 1) / 2).sub_(1)
