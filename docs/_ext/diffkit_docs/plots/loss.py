"""A loss: the weight of a squared error over log-SNR, measured from its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffkit.errors import CompositionError
from diffkit.explain import Explanation, explain
from diffkit.registry import KINDS
from diffkit_docs.figures import BLUE, GREY, Panel
from diffkit_docs.plots._shared import default


def panels(name: str, part: Any) -> list[Panel]:
    """Return the weight of an error of x_start and of eps, relative to where the SNR is 1."""
    shown, usual = weights(part), weights(default("loss"))

    def of(power: int) -> Any:
        def draw(axes: Axes) -> None:
            for each, color, label in ((usual, GREY, default("loss")), (shown, BLUE, name)):
                if label == default("loss") and name == label and color == GREY:
                    continue
                log_snr = np.log(each.snr)
                weight = each.weight / each.snr**power
                middle = np.argmin(np.abs(log_snr))
                with np.errstate(invalid="ignore", divide="ignore"):
                    y = np.where(weight > 0, weight, np.nan) / weight[middle]
                axes.plot(
                    log_snr, y, color=color, label=f"'{label}'", **({"ls": "--", "lw": 1} if color == GREY else {})
                )
            axes.set_yscale("log")

        return draw

    return [
        Panel("Weight of a squared error of x_start", "log-SNR", "relative to SNR = 1", of(0)),
        Panel("The same, of a squared error of eps", "log-SNR", "relative to SNR = 1", of(1)),
    ]


def weights(loss: Any) -> Explanation:
    """Explain a composition with this loss on the cosine schedule; with a learned variance if it needs one."""
    settings = {"schedule": "cosine", "backbone": None, "data_shape": (1, 1), "bins": None}
    assert "var" in KINDS
    try:
        return explain(loss=loss, **settings)
    except CompositionError:
        return explain(loss=loss, var="learned_range", **settings)
