"""Examples in a .npz or .npy file; nothing in it is unpickled, and what it unpacks to must fit into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.data.arrays import ArrayData, from_array
from diffkit.data.axes import check_file
from diffkit.data.classes import checked_names
from diffkit.errors import DataError, Message

_READ = ("arr_0", "arr_1", "classes", "bins")
_MOST_BINS = 2**53
"""The largest integer up to which float64 holds every integer."""
_LARGE, _SWELLING = 1 << 30, 100
"""Size in bytes from which a member is checked, and a packing ratio that no images reach."""


def open_file(path: Path, *, labels: bool = False, bins: int | None = None, layout: str | None = None) -> ArrayData:
    """Return the examples of a .npz or .npy file as data; a .npy is mapped, not read into memory.

    Args:
        path: The file.
        labels: Give the labels of a .npz, arr_1, as condition ``y``.
        bins: How many values the examples take; by default as written in the file, or 256 for uint8.
        layout: "channels_last" or "channels_first"; by default found from the shape.
    Raises:
        DataError: It is not there, damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not there")
    arrays = _arrays(path)
    if "arr_0" not in arrays:
        raise DataError(f"{str(path)!r} has no array arr_0 (it has: {', '.join(arrays) or 'none'})")
    if labels and "arr_1" not in arrays:
        raise DataError(f"{str(path)!r} has no labels, arr_1", fix={"labels": False})
    try:
        images = arrays["arr_0"]
        return from_array(
            images,
            bins=_bins(arrays["bins"]) if bins is None and "bins" in arrays else bins,
            layout=layout or check_file(images.shape[1:], integers=images.dtype.kind != "f"),
            labels=arrays["arr_1"] if labels else None,
            classes=checked_names(arrays["classes"]) if labels and "classes" in arrays else None,
            source=str(path),
        )
    except DataError as error:
        raise DataError(Message(f"{str(path)!r}: ", error.message)) from error


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a file that are used here, and the others as names only."""
    try:
        if path.suffix == ".npy":
            return {"arr_0": np.load(path, mmap_mode="r", allow_pickle=False)}
        _check_packing(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] if name in _READ else np.zeros(0) for name in loaded}
    except Exception as error:  # NumPy raises whatever its parsers meet in a damaged file
        raise DataError(f"{str(path)!r} cannot be read as a NumPy file: {error}") from error


def _check_packing(path: Path) -> None:
    """Refuse a member that would unpack to far more bytes than images do, to fill the memory."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > _LARGE and member.file_size > member.compress_size * _SWELLING:
                raise ValueError(
                    f"{member.filename} has {member.file_size} bytes packed in {member.compress_size}, more than "
                    "images allow; store it by numpy.savez"
                )


def _bins(value: NDArray[Any]) -> int:
    """Number of values that the examples take, as written in the file."""
    if value.shape != () or value.dtype.kind not in "iu" or not 2 <= value <= _MOST_BINS:
        shown = value.item() if value.shape == () else f"an array of shape {value.shape}"
        raise DataError(f"its bins are {shown!r}, which is not a number of values from 2; pass bins, such as 256")
    return int(value)
