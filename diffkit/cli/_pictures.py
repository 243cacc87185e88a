"""Samples as files: a PNG each, one grid of all, or one .npz as the published code writes them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from diffkit._errors import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TILE = 64
"""Smaller images are enlarged, by a whole factor, to about this many pixels in the grid."""
_GAP = 4


def need_pillow() -> None:
    """Raise `MissingExtraError` unless PNGs can be written."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("train", "writing PNG files") from error


def pixels(x: Tensor, bins: int | None) -> NDArray[Any]:
    """Return data in [-1, 1] as integers, rounded to the nearest; continuous data stays float32.

    Args:
        x: (N, C, *S).
        bins: How many values data takes: up to 256 become uint8 (0..255), more uint16 (0..65535).
    """
    if bins is None:
        return np.asarray(x.float().cpu().numpy())
    top = 255 if bins <= 256 else 65535
    scaled = ((x.double().clamp(-1, 1) + 1) * (top / 2)).round().cpu().numpy()
    return np.asarray(scaled.astype(np.uint8 if top == 255 else np.uint16))


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


def png(image: NDArray[np.uint8]) -> bytes:
    """Return one image, (C, H, W), as a PNG file; channels that are no colours stand side by side in grey."""
    from PIL import Image

    image = drawable(image)
    mode = _MODES[len(image)]
    values = np.ascontiguousarray(image[0] if mode == "L" else channels_last(image[None])[0])
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG")
    return buffer.getvalue()


def drawable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image with 1, 3 or 4 channels."""
    return image if len(image) in _MODES else np.concatenate(image, axis=-1)[None]


def grid(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Return all images in one, row by row, with a gap between them, (C, H, W).

    Args:
        images: Each (C, H, W).
        columns: How many to a row.
    """
    tiles = [drawable(image) for image in images]
    channels, height, width = tiles[0].shape
    factor = max(1, round(_TILE / max(height, width)))
    tiles = [tile.repeat(factor, 1).repeat(factor, 2) for tile in tiles]
    rows = -(-len(tiles) // columns)
    height, width = height * factor + _GAP, width * factor + _GAP
    out = np.full((channels, rows * height + _GAP, columns * width + _GAP), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height + _GAP, i % columns * width + _GAP
        out[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return out


def file_name(index: int, label: str | None) -> str:
    """Name of one PNG; a class comes first, so that the folder can be trained on with labels "prefix"."""
    safe = "" if label is None else re.sub(r"[^A-Za-z0-9.-]+", "-", label) + "_"
    return f"{safe}{index:06d}.png"
