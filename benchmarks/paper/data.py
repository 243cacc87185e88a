"""What the networks are trained on: scikit-learn's digits, and crops of its two photographs."""

from __future__ import annotations

from functools import cache

import numpy as np

from diffkit.data import from_array
from diffkit.data.base import Data
from diffkit.data.loading import load

BAND = 64
"""Width in pixels of the bands that photographs are cut into; whole bands are held out, so that no crop is in both."""
HELD_BANDS = (3, 7)


@cache
def data(name: str, split: str) -> Data:
    """Return "digits" or "crops8", "crops16", ..., split "train" or "held_out"."""
    if name == "digits":
        return load("digits", split=split, labels=False)
    return crops(int(name.removeprefix("crops")), split)


def crops(size: int, split: str) -> Data:
    """Random crops of china.jpg and flower.jpg, (3, size, size) uint8: 20,000 to train on, 1,000 held out."""
    from sklearn.datasets import load_sample_images

    count, seed = {"train": (20_000, 0), "held_out": (1_000, 1)}[split]
    rng = np.random.default_rng((size, seed))
    images = load_sample_images().images
    bands = [b for b in range(images[0].shape[1] // BAND) if (b in HELD_BANDS) == (split == "held_out")]
    out = np.empty((count, 3, size, size), dtype=np.uint8)
    for crop in out:
        image = images[rng.integers(len(images))]
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.choice(bands) * BAND + rng.integers(BAND - size + 1)
        crop[:] = image[top : top + size, left : left + size].transpose(2, 0, 1)
    return from_array(out, source=f"scikit-learn photographs, {size}x{size} crops, {split}")
