"""Map-style datasets of torch, or arrays with labels, as data to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from diffkit.data.axes import check_channels, move_example_channels_first
from diffkit.data.base import BatchedData, Data, Indices, MapData, description
from diffkit.data.classes import check_class_names
from diffkit.data.finite import find_not_finite
from diffkit.data.labels import MOST_CLASSES
from diffkit.data.skipping import Skipping
from diffkit.errors import DataError
from diffkit.options import check_integer
from diffkit.protocols import NO_CLASS
from diffkit.runtime.finite import examples_hold, rows_not_finite

IMAGES = ("image", "img", "x", "images", "pixel_values")
LABELS = ("label", "y", "labels", "class", "target")
"""Names of the entries of an item that is a dictionary, in the order they are tried."""
_LOOKED_AT = 16
_PIECE = 1024
"""Number of examples that are checked at a time."""
_ABSENT = object()
"""The label of an item without a label, which is not the same as a label for "no class"."""


def from_dataset(
    dataset: Any,
    *,
    shape: Sequence[int] | None = None,
    bins: int | None = None,
    classes: Sequence[str] | int | None = None,
    labels: bool | str = True,
    image: str | None = None,
    layout: str | None = None,
    on_error: str = "stop",
    max_skipped: float | None = None,
) -> Data:
    """Return data from a map-style dataset of torch, or from arrays ``(X, y)``.

    An item is an example (C, *S); or it and its class, or it and a dictionary of conditions; or a dictionary that holds
    the example as "image", "img" or "x" and its class as "label" or "y". Its other entries are not used.

    Args:
        dataset: With a length and items, such as a `torch.utils.data.Dataset`; or arrays or tensors: X (N, C, *S), or
            the pair of it and y (N,).
        shape: Shape of an example, (C, *S); by default that of item 0.
        bins: How many values an example takes. By default 256 for uint8 and None (continuous) for floating point; with
            bins, floating point must lie in [-1, 1].
        classes: Names of the classes, or how many there are; by default the dataset's attribute ``classes``.
        labels: Whether to use the classes, if there are any; or the name of their entry in a dictionary.
        image: Name of the example's entry in a dictionary.
        layout: "channels_first", or "channels_last", where (H, W) is grey. By default channels come first, and a shape
            that does not look so is refused.
        on_error: At items that cannot be read: "stop", or "skip", which uses the next item that can be read instead.
        max_skipped: The largest share of the items that may be skipped; by default a half, at least ten.
    Raises:
        DataError: It is not such a dataset, or item 0 cannot be trained on; the text names what to change.
        OptionError: An option is wrong.
    """
    names = class_names_of(classes)
    if isinstance(dataset, Tensor | np.ndarray):
        return _from_arrays(dataset, None, shape, bins, names, layout)
    if _is_pair(dataset):
        return _from_arrays(dataset[0], dataset[1] if labels else None, shape, bins, names, layout)
    _check_map_style(dataset)
    if isinstance(dataset, TensorDataset):
        _check_tensors(dataset)
    skipping = Skipping(len(dataset), on_error, max_skipped)
    items = DatasetItems(dataset, image, labels, layout)
    items = evolve(items, unlabelled=names is None and _all_unlabelled(items, skipping))
    _, (x, conditions) = skipping.read(0, items.__getitem__)
    if names is None and "y" in conditions:
        names = _names_in_dataset(dataset)
    found = DatasetMapData(
        items,
        example_shape(x, shape, layout),
        default_bins(x, bins),
        names,
    )
    data = DatasetData(found, type(dataset).__name__, skipping)
    check_items(data, _spread_indices(len(data)))
    return data


@frozen
class DatasetItems:
    """The items of a torch dataset as examples and conditions.

    Attributes:
        dataset: The dataset.
        image: Name of the example's entry in items that are dictionaries, or None to find it.
        labels: Whether classes are used, or the name of their entry.
        layout: Where the channels of an example are; None is first.
        unlabelled: Whether the label of every item is None, so that the data has no labels.
    """

    dataset: Any
    image: str | None
    labels: bool | str
    layout: str | None = None
    unlabelled: bool = False

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return an item of the dataset as an example, float32 or integers, and its conditions."""
        x, y = self._split_item(self._read_item(index), index)
        example = move_example_channels_first(_to_example(x, index), self.layout)
        if not self.labels or y is _ABSENT or (self.unlabelled and y is None):
            return example, {}
        if self.unlabelled:
            raise DataError(
                f"item {index} has the label {_value_text(y)}, but the items checked before have None; pass the "
                "number of classes as classes="
            )
        if isinstance(y, Mapping):
            return example, {name: _to_label(v, index) if name == "y" and v is None else v for name, v in y.items()}
        return example, {"y": _to_label(y, index)}

    def has_no_label(self, index: int) -> bool:
        """Return whether the label of an item is None."""
        return self._split_item(self._read_item(index), index)[1] is None

    def _read_item(self, index: int) -> Any:
        """Return the dataset's item; any error of the dataset becomes a `DataError` that names the item."""
        if index >= len(self.dataset):
            raise IndexError(f"item {index} of {len(self.dataset)}")  # an IndexError ends a loop over the data
        try:
            return self.dataset[index]
        except DataError:
            raise
        except Exception as error:  # code of the user's, and of any library
            raise DataError(f"item {index} cannot be read: {type(error).__name__}: {error}") from error

    def _split_item(self, item: Any, index: int) -> tuple[Any, Any]:
        """Return an item's example, and its class or conditions, which may be None or missing."""
        if isinstance(item, Mapping):
            label = self.labels if isinstance(self.labels, str) else next((k for k in LABELS if k in item), None)
            y = _ABSENT if label is None or not self.labels else _find_entry(item, label, index)
            return _find_entry(item, self.image or next((k for k in IMAGES if k in item), "image"), index), y
        if not isinstance(item, tuple | list):
            return item, _ABSENT
        if len(item) not in (1, 2):
            raise DataError(
                f"item {index} has {len(item)} parts instead of an example and its class; let the dataset return those "
                "two, or a dictionary"
            )
        return item[0], item[1] if len(item) == 2 else _ABSENT


@frozen
class DatasetMapData(MapData):
    """The items of a torch dataset as `MapData`, with the attributes that it requires."""

    items: DatasetItems
    shape: tuple[int, ...]
    bins: int | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Any]]:
        """Return item ``index`` of the dataset as an example and its conditions."""
        x, conditions = self.items[index]
        y = conditions.get("y")
        if isinstance(y, int) and self.classes is not None and y >= len(self.classes):
            raise DataError(f"item {index} has class {y}, but there are {len(self.classes)} classes")
        return x, conditions


class DatasetData(BatchedData):
    """A torch dataset as data; an item is read at every use, so that random transforms draw again."""

    def __init__(self, data: MapData, source: str, skipping: Skipping | None = None):
        super().__init__(data, skipping)
        self.source = source

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data; items may differ at every reading, so there is no fingerprint."""
        return {"source": self.source, **description(self)}


def from_dataset_hint(data: Any) -> str:
    """Return advice to use `from_dataset` for an object that it can make data from, or an empty string."""
    if isinstance(data, DataLoader):
        return "; give the loader's dataset as diffkit.data.from_dataset(loader.dataset)"
    if isinstance(data, IterableDataset):
        return "; make it data with diffkit.data.from_iterable(dataset, length=...)"
    if isinstance(data, torch.utils.data.Dataset) or _is_pair(data):
        return f"; make it data with diffkit.data.from_dataset({'(X, y)' if _is_pair(data) else 'dataset'})"
    return ""


def _from_arrays(
    x: Any, y: Any, shape: Sequence[int] | None, bins: int | None, names: Sequence[str] | None, layout: str | None
) -> Data:
    from diffkit.data.arrays import from_array

    if layout is None and shape is not None and tuple(x.shape[1:]) == tuple(shape):
        layout = "channels_first"  # as the shape says
    data = from_array(x, labels=y, bins=bins, classes=None if y is None else names, layout=layout)
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
            f"{kind} cannot be read in any order; give it to diffkit.data.from_iterable, which reads it in its own, "
            "or give a map-style dataset, with __len__ and __getitem__, or an array"
        )
    if len(dataset) < 1:
        raise DataError(f"{kind} is empty")


def _find_entry(item: Mapping[str, Any], name: str, index: int) -> Any:
    if name not in item:
        raise DataError(
            f"item {index} has no entry {name!r}, but {', '.join(map(repr, item))}; name them with image= and labels="
        )
    return item[name]


def _to_example(x: Any, index: int) -> Tensor:
    if type(x).__module__.partition(".")[0] == "PIL":
        raise DataError(
            f"item {index} is a picture of Pillow, {x.size[0]}x{x.size[1]} {x.mode}; give the dataset a transform to "
            "tensors of one size, such as torchvision.transforms.PILToTensor after Resize"
        )
    if not isinstance(x, Tensor | np.ndarray):
        raise DataError(f"item {index} is a {type(x).__name__}; an example must be a tensor or an array (C, *S)")
    if np.ma.is_masked(x):
        raise DataError(f"item {index} has masked values; let the dataset fill them by x.filled(...)")
    if isinstance(x, np.ndarray) and x.dtype.kind in "iuf":
        x = x.astype(x.dtype.newbyteorder("="), copy=False)  # torch knows this machine's order only
    try:
        found = torch.as_tensor(x).detach()
    except (TypeError, ValueError) as error:  # objects, texts, records
        raise DataError(f"item {index} is an array of {x.dtype}; an example must be of numbers") from error
    if found.dtype == torch.bool:
        raise DataError(f"item {index} is of {found.dtype}; give integers by x.to(torch.uint8), and pass bins=2")
    if found.is_complex():
        raise DataError(f"item {index} is of {found.dtype}; an example must be of integers or floating point")
    if found.is_floating_point():
        return found.float()
    return found.int() if found.dtype == torch.uint16 else found  # torch has few operators for it


def _to_label(y: Any, index: int) -> int:
    if y is None:
        return NO_CLASS
    found = y.item() if isinstance(y, Tensor | np.ndarray | np.generic) and y.ndim == 0 else y
    if isinstance(found, bool) or not isinstance(found, int) or found < NO_CLASS:
        raise DataError(
            f"item {index} has the label {_value_text(y)}, which is not a class number 0, 1, ...; let the dataset "
            "return one, or -1 or None for no class, or pass labels=False"
        )
    return found


def class_names_of(classes: Sequence[str] | int | None) -> tuple[str, ...] | None:
    """Return the names of classes from the argument ``classes``: a list of names, or how many there are."""
    if classes is None:
        return None
    if isinstance(classes, int):
        return tuple(str(i) for i in range(check_integer("classes", classes, ge=1, le=MOST_CLASSES)))
    return check_class_names(list(classes) if not isinstance(classes, str) else classes)


def _value_text(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if getattr(value, "ndim", 0) else repr(value)


def _names_in_dataset(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of classes if the dataset has a list of them, as torchvision's do."""
    names = getattr(dataset, "classes", None)
    found = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return check_class_names(names) if found else None


def example_shape(x: Tensor, shape: Sequence[int] | None, layout: str | None) -> tuple[int, ...]:
    """Return the shape of an example: the argument ``shape``, or that of item 0, checked for channels first."""
    if shape is not None:
        return tuple(shape)
    if x.ndim < 1:
        raise DataError("item 0 is one number; an example has a shape (C, *S)")
    check_channels(x.shape, layout, integers=not x.is_floating_point(), what="item 0 has")
    return tuple(x.shape)


def _check_tensors(dataset: TensorDataset) -> None:
    """Raise if a tensor of a `TensorDataset`, which is in memory, has a value that is not finite."""
    for what, values in zip(("examples", "labels"), dataset.tensors, strict=False):
        for start in range(0, len(values), _PIECE):
            rows = [start + row for row in rows_not_finite(values[start : start + _PIECE])]
            if rows:
                raise DataError(f"{examples_hold(rows)} in the {what}; correct or remove such examples")


def default_bins(x: Tensor, bins: int | None) -> int | None:
    """Return how many values an example takes: the argument ``bins``, or what the type of item 0 says."""
    if bins is not None or x.is_floating_point():
        return bins
    if x.dtype != torch.uint8:
        raise DataError(f"item 0 is of {x.dtype}, from which the number of values is unknown; pass bins, such as 256")
    return 256


def _all_unlabelled(items: DatasetItems, skipping: Skipping) -> bool:
    """Return whether the labels of some items, spread over the dataset, are all None."""
    return all(skipping.read(int(i), items.has_no_label)[1] for i in _spread_indices(len(items)))


def _spread_indices(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int64))


def check_items(data: DatasetData, some: Indices) -> None:
    """Read some items of a dataset and raise if their forms differ, or floating point with bins lies in [0, 1]."""
    batch = data.batch(some)
    for fault in find_not_finite(batch):
        raise DataError(fault)
    images = batch.images
    if data.bins is not None and images.is_floating_point() and images.min() >= 0 and images.max() <= 1:
        raise DataError(
            f"{len(some)} of the items lie in [0, 1], as ToTensor leaves them; floating point with bins must lie in "
            "[-1, 1]: add the transform Normalize([0.5], [0.5]), or give uint8"
        )
