"""Any map-style dataset of torch, or arrays with labels, as data to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from diffkit._errors import DataError
from diffkit.data.base import Data, MapData, Stacked, description

IMAGES = ("image", "img", "x", "images", "pixel_values")
LABELS = ("label", "y", "labels", "class", "target")
"""Entries of an item that is a dictionary, the likeliest first."""
_LOOKED_AT = 16


def from_dataset(
    dataset: Any,
    *,
    shape: Sequence[int] | None = None,
    bins: int | None = None,
    classes: Sequence[str] | int | None = None,
    labels: bool | str = True,
    image: str | None = None,
) -> Data:
    """Return data from a map-style dataset, or from arrays ``(X, y)``.

    An item is an example (C, *S); or it and its class, or it and a dictionary of conditions; or a dictionary that holds
    the example as "image", "img" or "x" and its class as "label" or "y". Whatever else it holds is left out.

    Args:
        dataset: With a length and items, such as a `torch.utils.data.Dataset`; or arrays or tensors: X (N, C, *S), or
            the pair of it and y (N,).
        shape: Shape of an example, (C, *S); by default that of item 0.
        bins: How many values an example takes. By default 256 for uint8 and None (continuous) for floating point; with
            bins, floating point must lie in [-1, 1].
        classes: Names of the classes, or how many there are; by default what the dataset calls its ``classes``.
        labels: Whether to take classes where there are any; or the name of their entry in a dictionary.
        image: Name of the example's entry in a dictionary.
    Raises:
        DataError: It is no such dataset, or item 0 is nothing to train on; the text says what to change.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else classes
    if isinstance(dataset, Tensor | np.ndarray):
        return _from_arrays(dataset, None, shape, bins, names)
    if _is_pair(dataset):
        return _from_arrays(dataset[0], dataset[1] if labels else None, shape, bins, names)
    _check_map_style(dataset)
    items = Items(dataset, image, labels)
    x, conditions = items[0]
    if names is None and "y" in conditions:
        names = _names_of(dataset)
    if shape is None:
        _check_axes(x)
    found = Fixed(
        items,
        tuple(x.shape) if shape is None else tuple(shape),
        _bins_of(x, bins),
        None if names is None else tuple(names),
    )
    data = DatasetData(found, type(dataset).__name__)
    _check_first(data)
    return data


@frozen
class Items:
    """Examples and conditions of a dataset's items.

    Attributes:
        dataset: Whose items.
        image: Name of the example's entry where items are dictionaries, or None to find it.
        labels: Whether classes are taken, or the name of their entry.
    """

    dataset: Any
    image: str | None
    labels: bool | str

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return an example, float32 or integers, and its conditions."""
        x, y = self._parts(self.dataset[index], index)
        if not self.labels or y is None:
            return _example(x, index), {}
        if isinstance(y, Mapping):
            return _example(x, index), dict(y)
        return _example(x, index), {"y": _label(y, index)}

    def _parts(self, item: Any, index: int) -> tuple[Any, Any]:
        """What an item holds: an example, and a class or conditions or None."""
        if isinstance(item, Mapping):
            label = self.labels if isinstance(self.labels, str) else next((k for k in LABELS if k in item), None)
            y = None if label is None or not self.labels else _entry(item, label, index)
            return _entry(item, self.image or next((k for k in IMAGES if k in item), "image"), index), y
        if not isinstance(item, tuple | list):
            return item, None
        if len(item) not in (1, 2):
            raise DataError(
                f"item {index} has {len(item)} parts, where there should be an example and its class; let the dataset "
                "return those, or a dictionary"
            )
        return item[0], item[1] if len(item) == 2 else None


@frozen
class Fixed(MapData):
    """Items with what data must say of itself."""

    items: Items
    shape: tuple[int, ...]
    bins: int | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Any]]:
        """Return example ``index`` and its conditions."""
        x, conditions = self.items[index]
        y = conditions.get("y")
        if isinstance(y, int) and self.classes is not None and y >= len(self.classes):
            raise DataError(f"item {index} has class {y}, but there are {len(self.classes)} classes")
        return x, conditions


class DatasetData(Stacked):
    """A dataset as data; its items are read whenever they are asked for, so that transforms may draw anew."""

    def __init__(self, data: MapData, source: str):
        super().__init__(data)
        self.source = source

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data; items may be other ones at every reading, so there is no fingerprint."""
        return {"source": self.source, **description(self)}


def hint(data: Any) -> str:
    """Return what to do with something that is no data but that a dataset can be made of, or an empty string."""
    if isinstance(data, DataLoader):
        return "; give the loader's dataset as diffkit.data.from_dataset(loader.dataset)"
    if isinstance(data, torch.utils.data.Dataset) or _is_pair(data):
        return f"; make it data with diffkit.data.from_dataset({'(X, y)' if _is_pair(data) else 'dataset'})"
    return ""


def _from_arrays(x: Any, y: Any, shape: Sequence[int] | None, bins: int | None, names: Sequence[str] | None) -> Data:
    from diffkit.data.arrays import from_array

    data = from_array(x, labels=y, bins=bins, classes=None if y is None else names)
    if shape is not None and data.shape != tuple(shape):
        raise DataError(f"examples have shape {data.shape}, not shape={tuple(shape)}")
    return data


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray)


def _check_map_style(dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise DataError(f"a {kind} has an order and batches of its own; give its dataset: from_dataset(loader.dataset)")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{kind} cannot be read in any order, which a run that goes on needs; give a map-style dataset, with "
            "__len__ and __getitem__, or an array"
        )
    if len(dataset) < 1:
        raise DataError(f"{kind} is empty")


def _entry(item: Mapping[str, Any], name: str, index: int) -> Any:
    if name not in item:
        raise DataError(
            f"item {index} has no entry {name!r}, but {', '.join(map(repr, item))}; say which with image= and labels="
        )
    return item[name]


def _example(x: Any, index: int) -> Tensor:
    if type(x).__module__.partition(".")[0] == "PIL":
        raise DataError(
            f"item {index} is a picture of Pillow, {x.size[0]}x{x.size[1]} {x.mode}; give the dataset a transform to "
            "tensors of one size, such as torchvision.transforms.PILToTensor after Resize"
        )
    if not isinstance(x, Tensor | np.ndarray):
        raise DataError(f"item {index} is a {type(x).__name__}; an example must be a tensor or an array (C, *S)")
    found = torch.as_tensor(x)
    if found.dtype == torch.bool or found.is_complex():
        raise DataError(f"item {index} is of {found.dtype}; an example must be of integers or floating point")
    if found.is_floating_point():
        return found.float()
    return found.int() if found.dtype == torch.uint16 else found  # torch has few operators for it


def _label(y: Any, index: int) -> int:
    found = y.item() if isinstance(y, Tensor | np.ndarray | np.generic) and y.ndim == 0 else y
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise DataError(
            f"item {index} has the label {_short(y)}, which is no class number 0, 1, ...; let the dataset return one, "
            "or pass labels=False"
        )
    return found


def _short(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if getattr(value, "ndim", 0) else repr(value)


def _names_of(dataset: Any) -> Sequence[str] | None:
    """Names of classes where the dataset has a list of them, as those of torchvision do."""
    names = getattr(dataset, "classes", None)
    return names if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else None


def _check_axes(x: Tensor) -> None:
    """Refuse what is an image, but not channels first."""
    own = tuple(x.shape)
    if x.ndim < 1:
        raise DataError("item 0 is one number; an example has a shape (C, *S)")
    if x.ndim == 2 and not x.is_floating_point():
        raise DataError(
            f"item 0 has shape {own} and no axis for channels; add one by unsqueeze(0), or pass shape={own} if it is "
            f"{own[0]} channels of length {own[1]}"
        )
    if x.ndim == 3 and own[-1] in (1, 3, 4) and own[0] not in (1, 2, 3, 4):
        raise DataError(
            f"item 0 has shape {own}, its channels last; move them first by permute(2, 0, 1), or pass shape={own} if "
            f"there are {own[0]} channels"
        )


def _bins_of(x: Tensor, bins: int | None) -> int | None:
    if bins is not None or x.is_floating_point():
        return bins
    if x.dtype != torch.uint8:
        raise DataError(f"item 0 is of {x.dtype}, which does not say how many values there are; pass bins, such as 256")
    return 256


def _check_first(data: DatasetData) -> None:
    """Read some items: all must fit each other, and floating point with bins must not be what ToTensor leaves."""
    some = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64))
    images = data.batch(some).images
    if data.bins is not None and images.is_floating_point() and images.min() >= 0 and images.max() <= 1:
        raise DataError(
            f"{len(some)} of the items lie in [0, 1], as ToTensor leaves them; floating point with bins must lie in "
            "[-1, 1]: add the transform Normalize([0.5], [0.5]), or give uint8"
        )
