"""Plot of the bound's terms over levels, in two panels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffkit.likelihood.scores import FAINT, NORMAL_95
from diffkit.runtime.plots import BLUE, ORANGE, figure, panel, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from diffkit.likelihood.scores import Scores


def draw_scores(scores: Scores, path: Path) -> Path:
    """Write the plot of the bound's terms; see `Scores.plot`."""
    drawn = figure(str(scores).split(" (")[0], figsize=(11, 4.2))
    terms, share = drawn.subplots(1, 2)
    for axes in (terms, share):
        if len(scores.levels) > 10:
            axes.set_xscale("log")
    _terms(terms, scores)
    _share(share, scores)
    return save(drawn, path)


def _terms(axes: Axes, scores: Scores) -> None:
    panel(axes, "Terms of the bound, with 95 % intervals", "bits/dim")
    seen = scores.visits > 0
    level, term, reach = scores.levels[seen], scores.terms[seen], NORMAL_95 * np.nan_to_num(scores.errors()[0][seen])
    positive = term > FAINT * max(term.max(), 0.0)
    marker = "o" if positive.sum() < 60 else None
    axes.plot(level[positive], term[positive], color=BLUE, marker=marker, markersize=3, linewidth=1)
    low = np.maximum(term - reach, term / 10)  # an interval that reaches 0 has no end on a log scale
    axes.fill_between(level[positive], low[positive], (term + reach)[positive], color=BLUE, alpha=0.25, linewidth=0)
    if positive.any():
        axes.set_yscale("log")


def _share(axes: Axes, scores: Scores) -> None:
    panel(axes, "Share of the bound in the first levels", "share")
    seen = scores.visits > 0
    filled = np.interp(scores.levels, scores.levels[seen], scores.terms[seen])
    total = filled.sum() + scores.prior.mean()
    if total > 0:
        axes.plot(scores.levels, np.cumsum(filled) / total, color=ORANGE)
        axes.set_ylim(0, 1.02)
