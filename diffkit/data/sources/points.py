"""Points in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.data.sources._source import Source
from diffkit.options import choice, flag, integer
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


@registry("data").register("points")
@frozen(kw_only=True)
class Points(Source):
    """Data source: points in the plane, of unit variance, continuous data of shape (2,) for the mlp.

    Attributes:
        kind: "moons" (2 classes), "gaussians" (8 on a circle) or "rings" (2).
        examples: Number of points, >= 1.
        seed: Seed of the points.
        labels: Give the class as condition ``y``.
    """

    kind: str = choice("moons", ("moons", "gaussians", "rings"))
    examples: int = integer(10_000, ge=1)
    seed: int = integer(0, ge=0)
    labels: bool = flag(False)

    def open(self) -> Data:
        """Draw the points."""
        import numpy as np

        from diffkit.data.arrays import from_array
        from diffkit.data.points import KINDS, standardize_points

        points, labels = KINDS[self.kind](self.examples, np.random.default_rng(self.seed))
        return from_array(
            standardize_points(points), labels=labels if self.labels else None, source=f"points {self.kind} {self.seed}"
        )
