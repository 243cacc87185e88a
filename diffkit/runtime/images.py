"""Data in [-1, 1] as images: integers, a grid of many, PNG files; and opening images safely."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import needed

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read, independent of the file's suffix; for some others Pillow starts external programs."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TILE = 64
"""Smaller images are enlarged in a grid, by an integer factor, to about this many pixels."""
_GAP = 4


def need_pillow(purpose: str) -> None:
    """Raise `MissingExtraError` unless Pillow is installed."""
    with needed("train", purpose):
        import PIL.Image  # noqa: F401


def open_image(file: Path | BinaryIO) -> Image:
    """Open an image file if it has one of `FORMATS`, without decoding its pixels.

    Raises:
        PIL.UnidentifiedImageError: It has none of these formats.
    """
    from PIL import Image

    Image.init()
    return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def pixels(x: Tensor, bins: int | None) -> NDArray[Any]:
    """Return data in [-1, 1] as pixels, the nearest integers; continuous data stays float32.

    Args:
        x: (N, C, *S).
        bins: Number of values that data takes: up to 256 become uint8 (0..255), more uint16 (0..65535).
    """
    if bins is None:
        return np.asarray(x.float().cpu().numpy())
    top = 255 if bins <= 256 else 65535
    return to_integers(x, top).astype(np.uint8 if top == 255 else np.uint16)


def to_integers(x: Tensor, top: int) -> NDArray[np.float64]:
    """Return data in [-1, 1] as the nearest of 0..top, NaN as 0; `diffkit.data.base.scale_images` is the inverse."""
    return np.asarray(((x.double().nan_to_num(-1.0).clamp(-1, 1) + 1) * (top / 2)).round().cpu().numpy())


def png(image: NDArray[np.uint8], *, optimize: bool = False) -> bytes:
    """Return an image, (C, H, W), as a PNG file; unless there are 1, 3 or 4 channels, they stand side by side in grey.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    need_pillow("writing PNG files")
    from PIL import Image

    image = with_drawable_channels(image)
    mode = _MODES[len(image)]
    values = np.ascontiguousarray(image[0] if mode == "L" else np.moveaxis(image, 0, -1))
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def with_drawable_channels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image with 1, 3 or 4 channels; other numbers of channels become one, side by side."""
    return image if len(image) in _MODES else np.concatenate(image, axis=-1)[None]


def grid(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Return a grid of images as one image, (C, H, W), row by row, with a gap between them.

    Args:
        images: Each (C, H, W).
        columns: Number of images in a row.
    """
    tiles = [with_drawable_channels(image) for image in images]
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
