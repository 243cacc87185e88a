"""A timestep sampler: the density of the levels that it draws, and their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from diffkit_docs.figures import BLUE, GREY, ORANGE, Panel
from diffkit_docs.plots._shared import cosine_table

_DRAWS = 200_000
_BINS = 50
_UPDATES = 150


def panels(name: str, part: Any) -> list[Panel]:
    """Return the density at the start of training and, if it learns, after losses; and the weights of the draws."""
    table = cosine_table()
    start = part.init(table)
    states = {"at the start": start}
    if (later := _after_losses(part, start, table.num_steps)) is not None:
        states["after losses that fall with the level"] = later
    drawn = {label: _draw(part, state, table.num_steps) for label, state in states.items()}
    by_level = float(next(iter(drawn.values()))[0].min()) >= 1
    low, high = (1, table.num_steps) if by_level else (-12.0, 12.0)
    edges = np.linspace(low, high, _BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    colors = (GREY, BLUE) if len(drawn) > 1 else (BLUE,)

    def density(axes: Axes) -> None:
        for (label, (level, _)), color in zip(drawn.items(), colors, strict=True):
            counts = np.histogram(level, edges)[0] / len(level) * _BINS
            axes.step(middle, counts, where="mid", color=color, label=label)
        axes.set_ylim(0, None)

    def weight(axes: Axes) -> None:
        for (label, (level, weights)), color in zip(drawn.items(), colors, strict=True):
            total = np.histogram(level, edges, weights=weights)[0]
            counts = np.histogram(level, edges)[0]
            mean = np.divide(total, counts, out=np.full(_BINS, np.nan), where=counts > 0)
            axes.plot(middle, mean, color=color, label=label)
        axes.axhline(1, color=ORANGE, lw=1, ls=":")
        axes.set_ylim(0, None)

    x = "level" if by_level else "log-SNR"
    return [
        Panel("Density of the drawn levels", x, "relative to uniform", density),
        Panel("Weight of a draw", x, "weight", weight),
    ]


def _draw(part: Any, state: Any, num_steps: int) -> tuple[Any, Any]:
    u = (torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS
    level, weight = part.sample(state, u, num_steps)
    return level.double().numpy(), weight.double().expand(level.shape).numpy()


def _after_losses(part: Any, state: Any, num_steps: int) -> Any:
    """The state after many losses that are 1 / sqrt(level); None if no loss changes it."""
    first = state
    for i in range(_UPDATES):
        u = torch.from_numpy(np.random.default_rng(i).random(256))
        level, _ = part.sample(state, u, num_steps)
        if level.is_floating_point():
            return None
        state = part.update(state, level, level.float() ** -0.5)
    return None if state is first else state
