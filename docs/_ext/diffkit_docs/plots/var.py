"""A variance: the standard deviation of the reverse step, between its two fixed choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from diffkit_docs.figures import BLUE, FAINT, GREEN, ORANGE, Panel
from diffkit_docs.plots._shared import cosine_table


def panels(name: str, part: Any) -> list[Panel]:
    """Return the standard deviation over levels, and its place between both fixed ones."""
    table = cosine_table()
    k = table.index[1:]
    low, high = table.posterior_log_variance[1:], table.upper_log_variance[1:]
    lines = _lines(part, table)

    def std(axes: Axes) -> None:
        axes.fill_between(k, np.exp(low / 2), np.exp(high / 2), color=FAINT, label="posterior's to beta's")
        for (label, value), color in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
            axes.plot(k, np.exp(value / 2), color=color, label=label)
        axes.set(xscale="log", yscale="log")

    def place(axes: Axes) -> None:
        for (label, value), color in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
            axes.plot(k, np.exp((value - high) / 2), color=color, label=label)
        axes.plot(k, np.exp((low - high) / 2), color=FAINT, lw=1)
        axes.set(xscale="log", ylim=(0, 1.2))

    return [
        Panel("Standard deviation of the reverse step", "level", "in units of the data", std),
        Panel("The same, as a share of sqrt(beta)", "level", "share", place),
    ]


def _lines(part: Any, table: Any) -> dict[str, Any]:
    """Log-variance at levels 1..T; for a learned one at several outputs of the network."""
    columns = {name: torch.from_numpy(value[1:].copy()) for name, value in part.columns(table).items()}
    outputs = (-1.0, 0.0, 1.0) if part.extra_outputs else (None,)
    found = {}
    for output in outputs:
        raw = None if output is None else torch.full((table.num_steps,), output, dtype=torch.float64)
        value = part.log_variance(raw, columns)
        label = "" if output is None else f"output {output:g}"
        found[label] = np.broadcast_to(np.asarray(value, dtype=float), (table.num_steps,))
    return found
