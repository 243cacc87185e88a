"""A loss: the weight of a squared error over log-SNR, measured from its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffkit.errors import CompositionError
from diffkit.explain import Explanation, explain
from diffkit_docs.figures import BLUE, GREY, Panel
from diffkit_docs.plots._shared import default


def panels(name: str, part: Any) -> list[Panel]:
    """Return the weight of an error of x_start and of eps, relative to where the SNR is 1."""
    shown = {name: (weights(part), BLUE, "-")}
    if name != default("loss"):
        shown = {default("loss"): (weights(default("loss")), GREY, "--"), **shown}

    def of(power: int) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for label, (each, color, style) in shown.items():
                weight = np.where(each.weight > 0, each.weight, np.nan) / each.snr**power
                middle = weight[np.argmin(np.abs(np.log(each.snr)))]
                axes.plot(np.log(each.snr), weight / middle, color=color, ls=style, label=f"'{label}'")
            low, high = axes.get_ylim()
            axes.set(yscale="log", ylim=(min(low, 0.5) if low > 0 else None, max(high, 2.0)))

        return draw

    return [
        Panel("Weight of a squared error of x_start", "log-SNR", "relative to SNR = 1", of(0)),
        Panel("The same, of a squared error of eps", "log-SNR", "relative to SNR = 1", of(1)),
    ]


def weights(loss: Any) -> Explanation:
    """Explain a composition with this loss on the cosine schedule; with a learned variance if it needs one."""
    settings: dict[str, Any] = {"schedule": "cosine", "backbone": None, "data_shape": (1, 1), "bins": None}
    try:
        return explain(loss=loss, **settings)
    except CompositionError:
        return explain(loss=loss, var="learned_range", **settings)
