"""Samples as files: names of PNGs, and one .npz as the published code writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray


def channels_last(images: NDArray[Any]) -> NDArray[Any]:
    """Move the channels of (N, C, *S) to the end."""
    return np.moveaxis(images, 1, -1)


def write_npz(
    path: Path, shape: tuple[int, ...], batches: Iterable[NDArray[Any]], labels: NDArray[np.int64] | None
) -> None:
    """Write ``arr_0``, images (N, *S, C), and with labels ``arr_1``, (N,) int64, just as `numpy.savez` would.

    Only one batch is in memory at a time.

    Args:
        path: The file.
        shape: (N, *S, C).
        batches: The images in order, some at a time, each (n, C, *S), at least one.
        labels: Of all images.
    """
    with ZipFile(path, "w") as archive:
        with archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            for i, images in enumerate(batches):
                if not i:
                    _write_header(file, images.dtype, shape)
                file.write(np.ascontiguousarray(channels_last(images)).tobytes())
        if labels is not None:
            with archive.open(ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def _write_header(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def file_name(index: int, label: str | None) -> str:
    """Name of one PNG; a class comes first, so that the folder can be trained on with labels "prefix"."""
    safe = "" if label is None else re.sub(r"[^A-Za-z0-9.-]+", "-", label) + "_"
    return f"{safe}{index:06d}.png"
