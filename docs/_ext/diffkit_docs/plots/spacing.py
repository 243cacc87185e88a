"""A spacing: which levels a chain of 20 steps visits."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from diffkit.spacing import levels
from diffkit_docs.figures import BLUE, GREY, Panel
from diffkit_docs.plots._shared import cosine_table

_COUNT = 20


def panels(name: str, part: Any) -> list[Panel]:
    """Return the levels, and where they lie in log-SNR on the cosine schedule."""
    table = cosine_table()
    visited = levels(table.num_steps, name if name.startswith("ays") else f"{name}{_COUNT}", table)

    def by_level(axes: Axes) -> None:
        axes.plot(range(1, len(visited) + 1), visited, "o-", color=BLUE, lw=1)

    def by_noise(axes: Axes) -> None:
        axes.plot(table.index[1:], table.log_snr[1:], color=GREY, lw=1)
        axes.plot(visited, table.log_snr[list(visited)], "o", color=BLUE)

    return [
        Panel(f"{len(visited)} levels of {table.num_steps}", "step, cleanest first", "level", by_level),
        Panel("The same on the cosine schedule", "level", "log-SNR", by_noise),
    ]
