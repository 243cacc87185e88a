"""Plot of an explanation, in four panels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffkit.explain.explanation import FAINT, Explanation
from diffkit.runtime.plots import BLUE, GREY, ORANGE, figure, panel, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS = 100
"""Largest number of visited levels that are drawn as dots; more are drawn as a line."""


def draw_explanation(e: Explanation, path: Path) -> Path:
    """Write the plot of an explanation; see `Explanation.plot`."""
    drawn = figure(
        " · ".join(f"{part.kind} {part.name}" for part in e.parts if part.kind != "sampler"), figsize=(11, 7.5)
    )
    (levels, weights), (variance, grid) = drawn.subplots(2, 2)
    _levels(levels, e)
    _weights(weights, e)
    _variance(variance, e)
    _grid(grid, e)
    return save(drawn, path)


def _curve(axes: Axes, x: Any, y: Any, **style: Any) -> None:
    """Draw a line, with dots if there are few levels, as one alone makes no line."""
    axes.plot(x, y, marker="o" if len(x) < 25 else None, markersize=3, **style)


def _levels(axes: Axes, e: Explanation) -> None:
    panel(axes, "How signal and noise mix", "share of the variance")
    _curve(axes, e.level, e.alpha_bar, color=BLUE, label="alpha_bar (signal)")
    _curve(axes, e.level, 1 - e.alpha_bar, color=ORANGE, label="1 - alpha_bar (noise)")
    faint = e.level[e.alpha_bar < FAINT]
    if faint.size:
        axes.axvspan(faint[0], faint[-1], color=GREY, alpha=0.15, label=f"alpha_bar < {FAINT:g}")
    axes.legend(frameon=False, fontsize=8)


def _weights(axes: Axes, e: Explanation) -> None:
    panel(axes, "Weight of a squared error of x_start", "relative to where the SNR is 1")
    middle = int(np.argmin(np.abs(np.log(np.maximum(e.snr, 1e-300)))))
    for column, color, label in ((e.weight, BLUE, "in the loss"), (e.bound_weight, ORANGE, "in the bound")):
        positive = np.where(column > 0, column, np.nan)
        _curve(axes, e.level, positive / positive[middle], color=color, label=label)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)


def _variance(axes: Axes, e: Explanation) -> None:
    panel(axes, "Standard deviation of the reverse step", "in units of the data")
    low = np.where(e.posterior_std > 0, e.posterior_std, np.nan)
    _curve(axes, e.level, e.upper_std, color=ORANGE, label="from beta")
    _curve(axes, e.level, low, color=BLUE, label="from beta-tilde (posterior)")
    axes.fill_between(e.level, low, e.upper_std, color=GREY, alpha=0.2)
    axes.set_yscale("log")
    if e.level[-1] > 10:
        axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)


def _grid(axes: Axes, e: Explanation) -> None:
    panel(axes, f"Levels that sampling visits: {len(e.grid)} of {len(e.level)} ({e.sampler.name})", "log10 of the SNR")
    snr = np.log10(np.where(e.snr > 0, e.snr, np.nan))
    axes.plot(e.level, snr, color=GREY, linewidth=1)
    visited = np.isin(e.level, np.rint(e.grid))
    if visited.sum() <= _DOTS:
        axes.plot(e.level[visited], snr[visited], "o", color=BLUE, markersize=5)
    else:
        axes.plot(e.level[visited], snr[visited], color=BLUE, linewidth=2)
