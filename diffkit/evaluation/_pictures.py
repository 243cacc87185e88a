"""Samples as pictures inside a page: grids of images as PNG data, points as scatters."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffkit._errors import MissingExtraError

TILE = 64
"""Smaller images are enlarged, by a whole factor, to about this many pixels."""
_GAP = 3
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Return images (N, C, H, W) in [-1, 1] in one, row by row, (H, W, C) uint8; values beyond are cut.

    Channels that are no colours stand side by side in grey.
    """
    pixels = ((images.double().cpu().clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)
    if pixels.shape[1] not in _MODES:
        pixels = np.concatenate(np.split(pixels, pixels.shape[1], axis=1), axis=3)
    count, channels, height, width = pixels.shape
    factor = max(1, round(TILE / max(height, width)))
    pixels = pixels.repeat(factor, 2).repeat(factor, 3)
    height, width = height * factor, width * factor
    rows = -(-count // columns)
    out = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + _GAP) + _GAP, i % columns * (width + _GAP) + _GAP
        out[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return out


def png(pixels: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, C) as a data URI.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    return "data:image/png;base64," + base64.b64encode(as_png(pixels)).decode()


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture (H, W, C) as a PNG file.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("report", "pictures in a report") from error
    mode = _MODES[pixels.shape[2]]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if mode == "L" else pixels), mode).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def strip(moments: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Return a grid with a row for each example and a column for each moment, each (n, C, H, W)."""
    import torch

    joined = torch.stack(list(moments), 1).flatten(0, 1)
    return grid(joined, len(moments))
