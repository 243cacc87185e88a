"""Data held in memory, or mapped into it from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit._errors import DataError, OptionError
from diffkit.data.base import Batch, Data, Image, Indices, description


class ArrayData(Data):
    """Examples in one array, with labels or without.

    Attributes:
        images: (N, C, *S), integers if there are bins, else float32.
        labels: Class of each example, (N,) int64, or None.
        source: Where they came from, for people.
    """

    def __init__(
        self,
        images: NDArray[Any],
        *,
        bins: int | None,
        labels: NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
        source: str = "array",
    ):
        self.images, self.labels, self.bins, self.source = images, labels, bins, source
        self.shape = tuple(images.shape[1:])
        self.classes = None if classes is None else tuple(classes)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return example ``index``, (C, *S), and its class if it has one."""
        conditions = {} if self.labels is None else {"y": int(self.labels[index])}
        return torch.from_numpy(np.array(self.images[index])), conditions

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices."""
        picked = np.array(indices, np.int64)
        images = torch.from_numpy(np.ascontiguousarray(self.images[picked]))
        conditions = {} if self.labels is None else {"y": torch.from_numpy(self.labels[picked])}
        return Batch(torch.from_numpy(picked), images, conditions)

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, how many examples each class has, and a fingerprint of some examples."""
        facts: dict[str, Any] = {"source": self.source, **description(self)}
        if self.labels is not None and self.classes is not None:
            facts["class_counts"] = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return facts | {"fingerprint": self._fingerprint()}

    def _fingerprint(self) -> str:
        """SHA-256 over at most 64 examples, evenly spread, and all labels."""
        some = np.unique(np.linspace(0, len(self) - 1, 64).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(self.images[some]).tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:16]


def from_array(
    images: Any,
    *,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    bins: int | None = None,
    layout: str = "channels_first",
    source: str = "array",
) -> ArrayData:
    """Return data from an array or tensor, after checking that it can be trained on.

    Args:
        images: (N, C, *S), or (N, *S, C) if the layout is "channels_last", where (N, H, W) is taken as grey.
        labels: Class of each example, (N,) integers from 0.
        classes: Names of the classes; their numbers by default.
        bins: How many values an example takes. By default 256 for uint8, 65536 for uint16, and None (continuous) for
            floating point; give it for floating point on a grid in [-1, 1].
        layout: "channels_first" or "channels_last".
        source: What to call it.
    Raises:
        DataError: It is empty, has the wrong shape or type, values out of range, or labels that do not fit.
    """
    array = _channels_first(_numpy(images, "images"), layout)
    bins = _bins_of(array, bins)
    if array.dtype.kind == "f":
        array = np.asarray(array, dtype=np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int32 if array.dtype == np.uint16 else np.int64)  # torch has few operators for these
    _check_values(array, bins)
    found = None if labels is None else _labels(labels, len(array))
    if found is not None:
        classes = [str(i) for i in range(int(found.max()) + 1)] if classes is None else list(classes)
        if found.max() >= len(classes):
            raise DataError(f"a label is {int(found.max())}, but there are {len(classes)} class names")
    elif classes is not None:
        raise DataError("class names were given without labels; pass labels, one for each example")
    return ArrayData(array, bins=bins, labels=found, classes=classes, source=source)


def _numpy(values: Any, what: str) -> NDArray[Any]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asanyarray(values)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} must be numbers, got an array of {array.dtype}")
    return array


def _channels_first(array: NDArray[Any], layout: str) -> NDArray[Any]:
    if layout not in ("channels_first", "channels_last"):
        raise OptionError(f"layout must be 'channels_first' or 'channels_last', got {layout!r}")
    if layout == "channels_last":
        array = array[..., None] if array.ndim == 3 else array
        array = np.moveaxis(array, -1, 1) if array.ndim > 2 else array
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"images must have shape (N, C, ...) with nothing empty, got {array.shape}")
    return array


def _bins_of(array: NDArray[Any], bins: int | None) -> int | None:
    if bins is not None or array.dtype.kind == "f":
        return bins
    known = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}.get(array.dtype)
    if known is None:
        raise DataError(f"an array of {array.dtype} does not say how many values there are; pass bins, such as 256")
    return known


def _check_values(array: NDArray[Any], bins: int | None) -> None:
    """Look at every value once, in pieces, so that a mapped file is never in memory whole."""
    low, high = np.inf, -np.inf
    for start in range(0, len(array), 1024):
        piece = array[start : start + 1024]
        low, high = min(low, piece.min()), max(high, piece.max())
        if not np.isfinite(piece.min() + piece.max() if array.dtype.kind == "f" else 0.0):
            raise DataError(f"images hold a value that is not finite, among examples {start} to {start + len(piece)}")
    if bins is not None and array.dtype.kind == "f" and (low < -1 - 1e-4 or high > 1 + 1e-4):
        raise DataError(f"floating-point images with bins must lie in [-1, 1], got values in [{low:g}, {high:g}]")
    if bins is not None and array.dtype.kind != "f" and (low < 0 or high >= bins):
        raise DataError(f"integer images with {bins} bins must lie in 0..{bins - 1}, got values in {low}..{high}")


def _labels(labels: Any, count: int) -> NDArray[np.int64]:
    found = _numpy(labels, "labels")
    if found.shape != (count,) or found.dtype.kind == "f":
        raise DataError(f"labels must be integers of shape ({count},), got {found.dtype} of shape {found.shape}")
    if found.min() < 0:
        raise DataError(f"labels must count from 0, got {int(found.min())}")
    return found.astype(np.int64)
