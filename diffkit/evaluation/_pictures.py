"""Samples as pictures inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.runtime.images import grid, pixels, png

SHADES = 256


def embedded(images: Tensor, columns: int) -> str:
    """Return images (N, C, H, W) in [-1, 1] in one, row by row, as a data URI; values beyond are cut."""
    return "data:image/png;base64," + base64.b64encode(png(_grid(images, columns), optimize=True)).decode()


def strip(moments: Sequence[Tensor]) -> str:
    """Return a picture with a row for each example and a column for each moment, each (n, C, H, W)."""
    return embedded(torch.stack(list(moments), 1).flatten(0, 1), len(moments))


def _grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    return grid(list(pixels(images, SHADES)), columns)
