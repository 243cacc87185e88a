"""Figures of matplotlib: made, styled and written alike."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import OptionError, needed
from diffkit.runtime.files import write_atomically
from diffkit.runtime.strict_json import reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2a6fbb", "#d9772b", "#8a8a8a"


def figure(title: str = "", **options: Any) -> Figure:
    """Return an empty figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needed("plot", "a plot"):
        from matplotlib.figure import Figure
    found = Figure(layout="constrained", **options)
    found.suptitle(title, fontsize=11)
    return found


def panel(axes: Axes, title: str, ylabel: str) -> None:
    """Style one panel over levels."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("level")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def check_plot_path(path: Path) -> None:
    """Refuse a picture that cannot be written, before there is anything to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: It knows no such kind of file.
    """
    kinds = figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise OptionError(
            f"cannot write the plot {str(path)!r}; its name must end in one of {', '.join(sorted(kinds))}"
        )


def save(drawn: Figure, path: Path) -> Path:
    """Write a figure in the format of the suffix, atomically, and return its path.

    Raises:
        OptionError: The file cannot be written.
    """
    buffer = io.BytesIO()
    try:
        drawn.savefig(buffer, dpi=120, format=path.suffix[1:].lower() or "png")
        write_atomically(path, buffer.getvalue())
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot write the plot {str(path)!r}: {reason(error)}") from error
    return path
