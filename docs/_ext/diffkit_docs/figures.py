"""Figures that read well on light and on dark pages: each is drawn once and written in both palettes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, GREY = "#20242c", "#d5d9e0", "#858b96"
BLUE, ORANGE, GREEN, PURPLE = "#1c6cb8", "#c4570f", "#258243", "#7347b3"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
_DARK = {
    INK: "#e4e6ea",
    FAINT: "#3b4048",
    GREY: "#9096a1",
    BLUE: "#6ab0f3",
    ORANGE: "#f2a15f",
    GREEN: "#6fd08d",
    PURPLE: "#bb9df5",
}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffkit",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
}


@frozen
class Panel:
    """One pair of axes.

    Attributes:
        title: What is drawn.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        draw: Draws into axes.
        legend: Where its legend is, in matplotlib's words; what is best takes seconds where many points are drawn.
    """

    title: str
    x: str
    y: str
    draw: Callable[[Axes], None]
    legend: Literal["best", "upper right"] = "best"


def write(panels: Sequence[Panel], path: Path) -> None:
    """Write each panel, and the first as a thumbnail: PATH.1.light.svg, PATH.1.dark.svg, PATH.thumb.light.svg, ..."""
    with mpl.rc_context(_STYLE):
        for i, panel in enumerate(panels, 1):
            _save(_whole(panel), path.with_name(f"{path.name}.{i}"))
        _save(_thumbnail(panels[0]), path.with_name(f"{path.name}.thumb"))


def _whole(panel: Panel) -> Figure:
    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    axes = figure.add_subplot()
    panel.draw(axes)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=panel.legend)
    return figure


def _thumbnail(panel: Panel) -> Figure:
    figure = Figure(figsize=(2.4, 1.5))
    axes = figure.add_axes((0.02, 0.04, 0.96, 0.92))
    panel.draw(axes)
    axes.set(xticks=[], yticks=[])
    axes.minorticks_off()
    axes.spines[:].set_visible(False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    light = out.getvalue()
    dark = light
    for color, other in _DARK.items():
        dark = dark.replace(color, other)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.light.svg").write_text(light, encoding="utf-8")
    path.with_name(f"{path.name}.dark.svg").write_text(dark, encoding="utf-8")
