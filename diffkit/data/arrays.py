"""Data in an array, in memory or memory-mapped from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data.axes import check_channels, move_channels_first
from diffkit.data.base import Batch, Data, Image, Indices, description
from diffkit.data.classes import class_counts, class_names, class_numbers
from diffkit.data.ranges import check_unit_range
from diffkit.errors import DataError
from diffkit.runtime.finite import examples_hold, rows_not_finite

_PIECE = 1024
"""Number of examples that are checked at a time."""


class ArrayData(Data):
    """Data whose examples are in one array, with labels or without.

    Attributes:
        images: (N, C, *S), integers if there are bins, else float32.
        labels: Class of each example, (N,) int64, or None.
        noise: Condition ``noise`` of each example, of the images' shape, float32, or None.
        conditions: Further conditions by name, each with a row for each example.
        source: Name of the data in messages.
    """

    deterministic = True

    def __init__(
        self,
        images: NDArray[Any],
        *,
        bins: int | None,
        labels: NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
        noise: NDArray[np.float32] | None = None,
        conditions: Mapping[str, NDArray[Any]] | None = None,
        source: str = "array",
    ):
        self.noise, self.conditions = noise, dict(conditions or {})
        self.images, self.labels, self.bins, self.source = images, labels, bins, source
        self.shape = tuple(images.shape[1:])
        self.classes = None if classes is None else tuple(classes)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return example ``index``, (C, *S), and its class if it has one."""
        conditions: dict[str, int | Tensor] = {} if self.labels is None else {"y": int(self.labels[index])}
        if self.noise is not None:
            conditions["noise"] = torch.from_numpy(np.array(self.noise[index]))
        for name, rows in self.conditions.items():
            conditions[name] = torch.from_numpy(np.array(rows[index]))
        return torch.from_numpy(np.array(self.images[index])), conditions

    def batch(self, indices: Indices) -> Batch:
        """Return the examples of the array with these indices."""
        picked = np.array(indices, np.int64)
        images = torch.from_numpy(np.ascontiguousarray(self.images[picked]))
        conditions = {} if self.labels is None else {"y": torch.from_numpy(self.labels[picked])}
        if self.noise is not None:
            conditions["noise"] = torch.from_numpy(np.ascontiguousarray(self.noise[picked]))
        for name, rows in self.conditions.items():
            conditions[name] = torch.from_numpy(np.ascontiguousarray(rows[picked]))
        return Batch(torch.from_numpy(picked), images, conditions)

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, how many examples each class has, and a fingerprint of some examples."""
        facts: dict[str, Any] = {"source": self.source, **description(self)}
        return facts | class_counts(self.labels, self.classes) | {"fingerprint": self._fingerprint()}

    def _fingerprint(self) -> str:
        """Return the start of a SHA-256 over at most 64 examples of the array, evenly spread, and all labels."""
        some = np.unique(np.linspace(0, len(self) - 1, 64).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(self.images[some]).tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        digest.update(b"" if self.noise is None else np.ascontiguousarray(self.noise[some]).tobytes())
        for name, rows in sorted(self.conditions.items()):
            digest.update(name.encode() + np.ascontiguousarray(rows[some]).tobytes())
        return digest.hexdigest()[:16]


def from_array(
    images: Any,
    *,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    bins: int | None = None,
    layout: str | None = None,
    noise: Any = None,
    conditions: Mapping[str, Any] | None = None,
    source: str = "array",
) -> ArrayData:
    """Return data from an array or tensor, after checking that it can be trained on.

    Args:
        images: (N, C, *S), or (N, *S, C) if the layout is "channels_last", where (N, H, W) is taken as grey.
        labels: Class of each example, (N,) integers from 0; -1 for an example without a class.
        classes: Names of the classes; their numbers by default.
        bins: How many values an example takes. By default 256 for uint8, 65536 for uint16, and None (continuous) for
            floating point; give it for floating point on a grid in [-1, 1].
        layout: "channels_first" or "channels_last". By default channels come first, and a shape that does not look
            so is an error.
        noise: Condition ``noise`` of each example, of the shape of ``images``; see the coupling 'reflow'.
        conditions: Further conditions of each example by name, such as ``context``: arrays of numbers, (N, ...).
        source: Name of the data in messages.
    Raises:
        DataError: The array is empty, has a wrong shape or type or values out of range, or labels do not fit.
    """
    array = _to_numpy(images, "images")
    _check_shape(array)
    check_channels(array.shape[1:], layout, integers=array.dtype.kind != "f", what="examples have")
    array = move_channels_first(array, layout)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch knows this machine's order only
    bins = _default_bins(array, bins)
    if array.dtype.kind == "f":
        array = np.asarray(array, dtype=np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int32 if array.dtype == np.uint16 else np.int64)  # torch has few operators for these
    _check_values(array, bins)
    found = None if labels is None else class_numbers(labels, len(array))
    if found is None and classes is not None:
        raise DataError("class names were given without labels; pass labels, one for each example")
    names = None if found is None else class_names(classes, found)
    own = None if noise is None else move_channels_first(_to_numpy(noise, "noise"), layout).astype(np.float32)
    if own is not None and own.shape != array.shape:
        raise DataError(f"noise must have the shape of the images, {array.shape}, got {own.shape}")
    others = {name: _rows_of(name, values, len(array)) for name, values in (conditions or {}).items()}
    return ArrayData(array, bins=bins, labels=found, classes=names, noise=own, conditions=others, source=source)


def _rows_of(name: str, values: Any, count: int) -> NDArray[Any]:
    """A condition with a row for each example."""
    found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if found.dtype.kind not in "biuf" or not found.ndim or len(found) != count:
        raise DataError(
            f"condition {name!r} must be numbers with a row for each of {count} examples, got {found.shape}"
        )
    if found.dtype.kind == "f":
        return np.asarray(found, np.float32)
    return found if found.dtype.kind == "b" else found.astype(np.int64)


def _to_numpy(values: Any, what: str) -> NDArray[Any]:
    try:
        array = _without_bfloat16(values).numpy() if isinstance(values, Tensor) else np.asanyarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, quantized tensors
        raise DataError(f"{what} cannot be made an array: {error}") from error
    if np.ma.is_masked(array):
        raise DataError(f"{what} have masked values; fill them by {what}.filled(...), or leave them out")
    if array.dtype.kind == "b":
        raise DataError(f"{what} are of {array.dtype}; give integers by astype('uint8'), and bins=2")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} must be numbers, got an array of {array.dtype}")
    return array


def _without_bfloat16(values: Tensor) -> Tensor:
    """Return a tensor on the CPU, bfloat16 as float32, as NumPy has no bfloat16."""
    found = values.detach().cpu()
    return found.float() if found.dtype == torch.bfloat16 else found


def _check_shape(array: NDArray[Any]) -> None:
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"images must have shape (N, C, ...) with nothing empty, got {array.shape}")


def _default_bins(array: NDArray[Any], bins: int | None) -> int | None:
    if bins is not None or array.dtype.kind == "f":
        return bins
    known = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}.get(array.dtype)
    if known is None:
        raise DataError(
            f"an array of {array.dtype} leaves the number of values unknown; store 0..255 as uint8, or pass bins"
        )
    return known


def _check_values(array: NDArray[Any], bins: int | None) -> None:
    """Check every value of the images, in pieces, so that a memory-mapped file is never in memory as a whole."""
    low, high = np.inf, -np.inf
    for start in range(0, len(array), _PIECE):
        piece = array[start : start + _PIECE]
        low, high = min(low, piece.min()), max(high, piece.max())
        if array.dtype.kind == "f" and not np.isfinite(piece).all():
            rows = rows_not_finite(torch.from_numpy(np.array(piece)))  # a copy: a mapped file is read-only
            raise DataError(f"{examples_hold([start + row for row in rows])}; correct or remove such examples")
    if bins is None:
        return
    if array.dtype.kind == "f":
        check_unit_range(low, high, "floating-point images with bins")
    elif low < 0 or high >= bins:
        raise DataError(f"integer images with {bins} bins must lie in 0..{bins - 1}, got values in {low}..{high}")
