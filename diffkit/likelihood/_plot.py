"""Plot of the bound's terms over levels, in two panels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffkit.errors import MissingExtraError, OptionError
from diffkit.likelihood.scores import FAINT, NORMAL_95
from diffkit.runtime.publishing import save_figure
from diffkit.runtime.strict_json import reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diffkit.likelihood.scores import Scores

_BLUE, _ORANGE = "#2a6fbb", "#d9772b"


def draw_scores(scores: Scores, path: Path) -> Path:
    """Write the plot of the bound's terms; see `Scores.plot`."""
    figure = _figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(str(scores).split(" (")[0], fontsize=11)
    terms, share = figure.subplots(1, 2)
    _terms(terms, scores)
    _share(share, scores)
    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot write the plot {str(path)!r}: {reason(error)}") from error
    return path


def check_plot_path(path: Path) -> None:
    """Raise if a plot of scores could not be written to a path, before the work for it begins.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: matplotlib cannot write files with this suffix.
    """
    kinds = _figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise OptionError(
            f"cannot write the plot {str(path)!r}; its name must end in one of {', '.join(sorted(kinds))}"
        )


def _figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plot", "a plot") from error
    return Figure(**options)


def _panel(axes: Axes, title: str, ylabel: str, levels: int) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("level")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if levels > 10:
        axes.set_xscale("log")


def _terms(axes: Axes, scores: Scores) -> None:
    _panel(axes, "Terms of the bound, with 95 % intervals", "bits/dim", len(scores.levels))
    seen = scores.visits > 0
    level, term, reach = scores.levels[seen], scores.terms[seen], NORMAL_95 * np.nan_to_num(scores.errors()[0][seen])
    positive = term > FAINT * max(term.max(), 0.0)
    marker = "o" if positive.sum() < 60 else None
    axes.plot(level[positive], term[positive], color=_BLUE, marker=marker, markersize=3, linewidth=1)
    low = np.maximum(term - reach, term / 10)  # an interval that reaches 0 has no end on a log scale
    axes.fill_between(level[positive], low[positive], (term + reach)[positive], color=_BLUE, alpha=0.25, linewidth=0)
    if positive.any():
        axes.set_yscale("log")


def _share(axes: Axes, scores: Scores) -> None:
    _panel(axes, "Share of the bound in the first levels", "share", len(scores.levels))
    seen = scores.visits > 0
    filled = np.interp(scores.levels, scores.levels[seen], scores.terms[seen])
    total = filled.sum() + scores.prior.mean()
    if total > 0:
        axes.plot(scores.levels, np.cumsum(filled) / total, color=_ORANGE)
        axes.set_ylim(0, 1.02)
