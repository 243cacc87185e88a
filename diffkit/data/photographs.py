"""Pieces cut from two photographs, for super-resolution and for tests, without a download.

Source: scikit-learn's sample images: china.jpg (Yann Forget) and flower.jpg, CC BY.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import OptionError, needed
from diffkit.runtime.images import need_pillow

NAMES = ("china", "flower")
Pieces = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_photographs() -> list[NDArray[np.uint8]]:
    """Return both photographs, each (3, 427, 640) uint8.

    Raises:
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    need_pillow("reading image files")
    with needed("demo", "the photographs"):
        from sklearn.datasets import load_sample_image  # type: ignore[import-untyped,unused-ignore]
    return [np.ascontiguousarray(load_sample_image(f"{name}.jpg").transpose(2, 0, 1)) for name in NAMES]


def grid_pieces(photos: Sequence[NDArray[np.uint8]], size: tuple[int, int], stride: int | tuple[int, int]) -> Pieces:
    """Cut photographs into a grid of pieces, (N, 3, *size); return them and which photograph each is of, (N,) int64."""
    down, across = (stride, stride) if isinstance(stride, int) else stride
    height, width = size
    _check(photos, size)
    pieces = [
        (photo[:, top : top + height, left : left + width], i)
        for i, photo in enumerate(photos)
        for top in range(0, photo.shape[1] - height + 1, down)
        for left in range(0, photo.shape[2] - width + 1, across)
    ]
    return np.stack([piece for piece, _ in pieces]), np.array([i for _, i in pieces], np.int64)


def random_pieces(photos: Sequence[NDArray[np.uint8]], size: tuple[int, int], count: int, seed: int) -> Pieces:
    """Cut random pieces from photographs, (count, 3, *size); return them and which each is of, (count,) int64."""
    height, width = size
    _check(photos, size)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(photos), count)
    images = np.empty((count, 3, height, width), np.uint8)
    for n, i in enumerate(which):
        top = rng.integers(0, photos[i].shape[1] - height + 1)
        left = rng.integers(0, photos[i].shape[2] - width + 1)
        images[n] = photos[i][:, top : top + height, left : left + width]
    return images, which


def _check(photos: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> None:
    for photo in photos:
        if size[0] > photo.shape[1] or size[1] > photo.shape[2]:
            raise OptionError(f"size {size} does not fit into a photograph of {photo.shape[1:]}; use a smaller one")
