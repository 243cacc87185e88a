"""A backbone: operations and memory against the size of the data, as `diffkit size` counts them."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from diffkit.errors import DiffkitError
from diffkit.explain.network_size import SizeReport, size_report
from diffkit_docs.figures import BLUE, GREEN, ORANGE, Panel

_SIDES = (8, 16, 32, 64, 128)
_CHANNELS = 3
_BATCH = 16
_GIGA = 1e9


def panels(name: str, part: Any) -> list[Panel]:
    """Return operations for an image, and memory for a batch, of the network with its default options."""
    found = {side: report for side in _SIDES if (report := _report(part, side))}
    sides = list(found)

    def operations(axes: Axes) -> None:
        axes.plot(sides, [each.training_flops / _GIGA for each in found.values()], "o-", color=ORANGE, label="training")
        axes.plot(sides, [each.forward_flops / _GIGA for each in found.values()], "o-", color=BLUE, label="sampling")
        _both_logarithmic(axes)

    def memory(axes: Axes) -> None:
        axes.plot(sides, [each.training_bytes / _GIGA for each in found.values()], "o-", color=ORANGE, label="training")
        recomputed = {side: each.recomputed_bytes for side, each in found.items() if each.recomputed_bytes}
        if recomputed:
            values = [each / _GIGA for each in recomputed.values()]
            axes.plot(list(recomputed), values, "o--", color=GREEN, label="training, checkpoint=True")
        axes.plot(sides, [each.sampling_bytes / _GIGA for each in found.values()], "o-", color=BLUE, label="sampling")
        _both_logarithmic(axes)

    def _both_logarithmic(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xticks=sides, xticklabels=[f"{side}x{side}" for side in sides])
        axes.xaxis.set_minor_locator(NullLocator())

    sizes = dict.fromkeys(f"{found[side].num_parameters / 1e6:.3g}" for side in (sides[0], sides[-1]))
    return [
        Panel("Operations for one image and step", "colour image", "GFLOP", operations),
        Panel(
            f"Memory for a batch of {_BATCH} in float32",
            f"colour image ({' to '.join(sizes)} million parameters)",
            "GB",
            memory,
        ),
    ]


def _report(part: Any, side: int) -> SizeReport | None:
    """Counts for colour images of a side; None for a size that the network cannot be built for."""
    try:
        return size_report(part, (_CHANNELS, side, side), _CHANNELS, batch_size=_BATCH)
    except DiffkitError:
        return None
