"""Data in [-1, 1] as pictures: integers, a grid of many, PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import DivergedError, MissingExtraError
from diffkit.runtime.output import log

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read, independent of the file's suffix; for some others Pillow starts external programs."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TILE = 64
"""Smaller images are enlarged, by a whole factor, to about this many pixels in a grid."""
_GAP = 4


def need_pillow(purpose: str) -> None:
    """Raise `MissingExtraError` unless PNGs can be written."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("train", purpose) from error


def open_image(file: Path | BinaryIO) -> Image:
    """Open an image as one of `FORMATS`, without decoding its pixels.

    Raises:
        PIL.UnidentifiedImageError: It is none of these.
    """
    from PIL import Image

    Image.init()
    return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def pixels(x: Tensor, bins: int | None) -> NDArray[Any]:
    """Return data in [-1, 1] as integers, rounded to the nearest; continuous data stays float32.

    Args:
        x: (N, C, *S).
        bins: Number of values that data takes: up to 256 become uint8 (0..255), more uint16 (0..65535).
    """
    if bins is None:
        return np.asarray(x.float().cpu().numpy())
    top = 255 if bins <= 256 else 65535
    return integers(x, top).astype(np.uint8 if top == 255 else np.uint16)


def integers(x: Tensor, top: int) -> NDArray[np.float64]:
    """Return data in [-1, 1] as the nearest of 0..top, NaN as 0; `diffkit.data.base.scaled` is the inverse."""
    return np.asarray(((x.double().nan_to_num(-1.0).clamp(-1, 1) + 1) * (top / 2)).round().cpu().numpy())


def check_finite(samples: Tensor, first: int = 0) -> None:
    """Log which samples are not finite, before they become images.

    Args:
        samples: (N, C, *S).
        first: Index of the first of them.
    Raises:
        DivergedError: None of them is finite.
    """
    if math.isfinite(float(samples.sum())):  # so is every term; faster than a look at each
        return
    bad = (~samples.isfinite().flatten(1).all(1)).nonzero().flatten().add(first).tolist()
    if bad and len(bad) == len(samples):
        raise DivergedError(
            f"none of {len(bad)} samples is finite: the network's weights are not, after a run that diverged, or "
            "what it is steered or computed with is too much for it (guidance, precision), or errors grow from step to "
            "step (clip=True holds them; diffkit explain shows how much a mean enlarges them)"
        )
    if bad:
        some = ", ".join(map(str, bad[:5])) + (", ..." if bad[5:] else "")
        log(f"warning: {len(bad)} of {len(samples)} samples are not finite ({some})")


def png(image: NDArray[np.uint8], *, optimize: bool = False) -> bytes:
    """Return one image, (C, H, W), as a PNG file; other numbers of channels than 1, 3 and 4 are shown side by side in
    grey.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    need_pillow("writing PNG files")
    from PIL import Image

    image = drawable(image)
    mode = _MODES[len(image)]
    values = np.ascontiguousarray(image[0] if mode == "L" else np.moveaxis(image, 0, -1))
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def drawable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image with 1, 3 or 4 channels."""
    return image if len(image) in _MODES else np.concatenate(image, axis=-1)[None]


def grid(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Return all images in one, row by row, with a gap between them, (C, H, W).

    Args:
        images: Each (C, H, W).
        columns: Number of images in a row.
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
