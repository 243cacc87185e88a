"""A spacing: which levels a chain of 20 steps visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from diffkit.errors import DiffkitError
from diffkit_docs.figures import BLUE, GREY, Panel
from diffkit_docs.options import options_of
from diffkit_docs.plots._shared import cosine_table

_COUNTS: Sequence[Any] = (20, (4, 6, 10))
"""What an option that must be given is tried with: a number of levels, or one for each section."""


def panels(name: str, part: Any) -> list[Panel]:
    """Return the levels, and where they lie in log-SNR on the cosine schedule."""
    table = cosine_table()
    visited = list((_made(part) if isinstance(part, type) else part).levels(table))

    def by_level(axes: Axes) -> None:
        axes.plot(range(1, len(visited) + 1), visited, "o-", color=BLUE, lw=1)

    def by_noise(axes: Axes) -> None:
        axes.plot(table.index[1:], table.log_snr[1:], color=GREY, lw=1)
        axes.plot(visited, table.log_snr[visited], "o", color=BLUE)

    return [
        Panel(f"{len(visited)} levels of {table.num_steps}", "step, cleanest first", "level", by_level),
        Panel("The same on the cosine schedule", "level", "log-SNR", by_noise),
    ]


def _made(cls: type) -> Any:
    required = [option.name for option in options_of(cls) if not option.default]
    for count in _COUNTS:
        try:
            return cls(**dict.fromkeys(required, count))
        except DiffkitError:
            continue
    return cls()
