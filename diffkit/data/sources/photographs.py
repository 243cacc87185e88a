"""Pieces of scikit-learn's two photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.data.sources._source import Source
from diffkit.errors import OptionError
from diffkit.options import choice, flag, integer, integers
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


@registry("data").register("photographs")
@frozen(kw_only=True)
class Photographs(Source):
    """Data source: pieces of the two colour photographs of scikit-learn, a temple and a flower, 427x640; 2 classes.

    Attributes:
        size: Height and width of a piece; one number for a square.
        pieces: "grid" (side by side, every ``stride`` pixels) or "random" (anywhere).
        stride: Pixels from a piece of the grid to the next; by default ``size``, without overlap.
        examples: Number of random pieces.
        seed: Seed of random pieces.
        labels: Give the photograph as condition ``y``.
    """

    size: tuple[int, ...] = integers((64,), single=True, ge=1, le=640)
    pieces: str = choice("grid", ("grid", "random"))
    stride: int | None = integer(None, optional=True, ge=1)
    examples: int = integer(1000, ge=1)
    seed: int = integer(0, ge=0)
    labels: bool = flag(False)

    def open(self) -> Data:
        """Cut the pieces; needs scikit-learn and Pillow."""
        from diffkit.data.arrays import from_array
        from diffkit.data.photographs import NAMES, grid_pieces, load_photographs, random_pieces

        if len(self.size) not in (1, 2):
            raise OptionError("must be one number or two", option="size", value=self.size)
        size = (self.size[0], self.size[-1])
        if self.pieces == "grid":
            images, labels = grid_pieces(load_photographs(), size, self.stride or size)
        else:
            images, labels = random_pieces(load_photographs(), size, self.examples, self.seed)
        return from_array(
            images,
            labels=labels if self.labels else None,
            classes=NAMES if self.labels else None,
            source=f"photographs {self.pieces}",
        )
