"""Scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.data.sources._source import Source
from diffkit.errors import needed
from diffkit.options import choice, flag
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data

HELD_OUT = 6
"""Every sixth digit is held out: 299 of 1,797."""


@registry("data").register("digits")
@frozen(kw_only=True)
class Digits(Source):
    """Data source: the 1,797 handwritten digits of scikit-learn, 1x8x8, 17 grey levels, 10 classes.

    Attributes:
        split: "all", "train" (1,498 of them) or "held_out" (the other 299: every sixth).
        labels: Give the digit as condition ``y``.
    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", test part.
    """

    split: str = choice("all", ("all", "train", "held_out"))
    labels: bool = flag(True)

    def open(self) -> Data:
        """Load the digits; needs scikit-learn."""
        with needed("demo", "the digits data"):
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        import numpy as np

        from diffkit.data.arrays import from_array

        images, labels = load_digits(return_X_y=True)
        held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
        picked = {"all": held_out | True, "train": ~held_out, "held_out": held_out}[self.split]
        return from_array(
            images[picked].reshape(-1, 1, 8, 8).astype(np.uint8),
            labels=labels[picked] if self.labels else None,
            bins=17,
            source="digits" if self.split == "all" else f"digits {self.split}",
        )
