"""A schedule of the learning rate: its factor over a run."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from diffkit_docs.figures import BLUE, GREY, Panel

_LENGTHS = ((100_000, GREY), (400_000, BLUE))
"""Updates of the runs that are drawn, and their colors."""


def panels(name: str, part: Any) -> list[Panel]:
    """Return the factor over two runs of different lengths."""

    def draw(axes: Axes) -> None:
        for length, color in _LENGTHS:
            steps = range(0, length, length // 400)
            axes.plot(steps, [part.factor(step, length) for step in steps], color=color, label=f"{length:,} updates")
        axes.set_ylim(0, 1.05)

    return [Panel("Factor on the learning rate", "update", "factor", draw)]
