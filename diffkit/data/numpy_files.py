"""Data in a .npz or .npy file; nothing is unpickled, and arrays that would unpack to fill the memory are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.data.arrays import ArrayData, from_array
from diffkit.data.axes import file_layout
from diffkit.data.classes import check_class_names
from diffkit.errors import DataError, Message

_READ = ("arr_0", "arr_1", "classes", "bins", "paired_noise")
_MOST_BINS = 2**53
"""The largest integer up to which float64 holds every integer."""
_LARGE, _SWELLING = 1 << 30, 100
"""Size in bytes from which the packing ratio of an array is checked, and a ratio that images do not reach."""


def open_numpy_file(
    path: Path,
    *,
    labels: bool = False,
    bins: int | None = None,
    layout: str | None = None,
    conditions: Collection[str] = (),
) -> ArrayData:
    """Open a .npz or .npy file as data; a .npy file is memory-mapped.

    Args:
        path: The file.
        labels: Give the labels of a .npz, arr_1, as condition ``y``.
        bins: How many values the examples take; by default as written in the file, or 256 for uint8.
        layout: "channels_last" or "channels_first"; by default found from the shape.
        conditions: Names of arrays that are conditions of the same names.
    Raises:
        DataError: The file is missing or damaged, or has other content.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not there")
    arrays = _read_arrays(path, conditions)
    if "arr_0" not in arrays:
        raise DataError(f"{str(path)!r} has no array arr_0 (it has: {', '.join(arrays) or 'none'})")
    if missing := [name for name in conditions if name not in arrays]:
        raise DataError(f"{str(path)!r} has no array {missing[0]} (it has: {', '.join(arrays)})")
    if labels and "arr_1" not in arrays:
        raise DataError(f"{str(path)!r} has no labels, arr_1", fix={"labels": False})
    try:
        images = arrays["arr_0"]
        return from_array(
            images,
            bins=_read_bins(arrays["bins"]) if bins is None and "bins" in arrays else bins,
            layout=layout or file_layout(images.shape[1:], integers=images.dtype.kind != "f"),
            labels=arrays["arr_1"] if labels else None,
            classes=check_class_names(arrays["classes"]) if labels and "classes" in arrays else None,
            noise=arrays.get("paired_noise"),
            conditions={name: arrays[name] for name in conditions},
            source=str(path),
        )
    except DataError as error:
        raise DataError(Message(f"{str(path)!r}: ", error.message)) from error


def _read_arrays(path: Path, others: Collection[str] = ()) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a NumPy file that are used; others are empty arrays."""
    try:
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, mmap_mode="r", allow_pickle=False)}
        _check_packing(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] if name in (*_READ, *others) else np.zeros(0) for name in loaded}
    except Exception as error:  # NumPy raises whatever its parsers meet in a damaged file
        raise DataError(f"{str(path)!r} cannot be read as a NumPy file: {error}") from error


def _check_packing(path: Path) -> None:
    """Raise if an array of a .npz file would unpack to far more bytes than images do, to fill the memory."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > _LARGE and member.file_size > member.compress_size * _SWELLING:
                raise ValueError(
                    f"{member.filename} has {member.file_size} bytes packed in {member.compress_size}, more than "
                    "images allow; store it by numpy.savez"
                )


def _read_bins(value: NDArray[Any]) -> int:
    """Return the number of values that the examples take, as written in the file."""
    if value.shape != () or value.dtype.kind not in "iu" or not 2 <= value <= _MOST_BINS:
        shown = value.item() if value.shape == () else f"an array of shape {value.shape}"
        raise DataError(f"its bins are {shown!r}, which is not a number of values from 2; pass bins, such as 256")
    return int(value)
