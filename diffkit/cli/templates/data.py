"""Stripes of two grey levels, of random widths.

Usage:

    data = diffkit.data.load("my_part", examples=100)
"""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.data import Data, Source, from_array
from diffkit.options import integer


@frozen(kw_only=True)
class MyPart(Source):
    """Stripes of two grey levels, of random widths.

    Attributes:
        examples: How many, >= 1.
        seed: Seed of the widths.
    Source: who made the data, and where it is described.
    """

    examples: int = integer(1000, ge=1)
    seed: int = integer(0, ge=0)

    def open(self) -> Data:
        """Return the data, images of 1x8x8 with 256 grey levels; the same at each call."""
        widths = np.random.default_rng(self.seed).integers(1, 5, self.examples)
        rows = np.arange(8) // widths[:, None] % 2 * 255
        images = np.broadcast_to(rows[:, None, None, :], (self.examples, 1, 8, 8)).astype(np.uint8)
        return from_array(images, source="my_part")
