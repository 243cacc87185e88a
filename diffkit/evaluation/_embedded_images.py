"""Samples as images embedded in an HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.runtime.images import grid, pixels, png

SHADES = 256


def embed_images(images: Tensor, columns: int) -> str:
    """Return a grid of images (N, C, H, W) in [-1, 1] as a data URI for an HTML page; other values are clipped."""
    return "data:image/png;base64," + base64.b64encode(png(_grid(images, columns), optimize=True)).decode()


def embed_strip(steps: Sequence[Tensor]) -> str:
    """Return a data URI of one image with a row for each example and a column for each step, each (n, C, H, W)."""
    return embed_images(torch.stack(list(steps), 1).flatten(0, 1), len(steps))


def _grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    return grid(list(pixels(images, SHADES)), columns)
