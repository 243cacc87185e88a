"""A data source: its first examples, if it needs no file."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffkit.errors import DiffkitError
from diffkit_docs.figures import BLUE, Panel

_ROWS, _COLUMNS = 4, 7
_POINTS = 800


def panels(name: str, part: Any) -> list[Panel]:
    """Return a grid of pictures, or points; nothing for a source that needs a file or an option."""
    if isinstance(part, type):
        return []
    try:
        data = part.open()
    except DiffkitError:
        return []
    plane = data.shape == (2,)
    batch = data.batch(range(min(len(data), _POINTS if plane else _ROWS * _COLUMNS)))
    values = np.asarray(batch.images, dtype=float)

    def pictures(axes: Axes) -> None:
        framed = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=(data.bins or 2) // 2)
        tiles = framed.reshape(_ROWS, _COLUMNS, *framed.shape[1:]) / ((data.bins or 2) - 1)
        picture = tiles.transpose(0, 3, 1, 4, 2).reshape(_ROWS * framed.shape[2], -1, framed.shape[1])
        axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)

    def points(axes: Axes) -> None:
        axes.plot(*values.T, ".", color=BLUE, markersize=3, alpha=0.6)
        axes.set_aspect("equal")

    title = f"First {len(values)} of {len(data)} examples, {' x '.join(map(str, data.shape))}"
    return [Panel(title, "", "", points if plane else pictures)]
