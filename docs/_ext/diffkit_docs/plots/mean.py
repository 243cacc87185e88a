"""A mean: how the network's output becomes an estimate of clean data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffkit.system.coefficients import scalings
from diffkit_docs.figures import BLUE, GREEN, ORANGE, Panel
from diffkit_docs.plots._shared import cosine_table


def panels(name: str, part: Any) -> list[Panel]:
    """Return the coefficients, and how much an error of the output is enlarged, over log-SNR."""
    table = cosine_table()
    found = scalings(part, table)
    x = table.log_snr[2:]
    colors = {"c_skip": GREEN, "c_out": BLUE, "c_in": ORANGE}

    def coefficients(axes: Axes) -> None:
        for key, color in colors.items():
            axes.plot(x, np.asarray(getattr(found, key))[2:], color=color, label=key)
        axes.set_yscale("symlog", linthresh=1)

    def gain(axes: Axes) -> None:
        axes.plot(x, np.abs(found.c_out[2:]), color=BLUE)
        axes.set_yscale("log")

    return [
        Panel("x_start = c_skip x_t + c_out F(c_in x_t)", "log-SNR", "coefficient", coefficients),
        Panel("An error of the network in x_start", "log-SNR", "enlarged by |c_out|", gain),
    ]
