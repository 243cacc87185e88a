"""A schedule: signal and noise scale, and log-SNR, over levels."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffkit.registry import registry
from diffkit_docs.figures import BLUE, GREY, ORANGE, Panel
from diffkit_docs.plots._shared import NUM_STEPS, default


def panels(name: str, part: Any) -> list[Panel]:
    """Return alpha and sigma, and log-SNR with that of the default schedule."""
    table = part.table(NUM_STEPS)
    usual = registry("schedule").create(default("schedule")).table(NUM_STEPS)
    u = table.index / NUM_STEPS

    def scales(axes: Axes) -> None:
        axes.plot(u, table.alpha, color=BLUE, label="alpha, signal")
        axes.plot(u, table.sigma, color=ORANGE, label="sigma, noise")

    def log_snr(axes: Axes) -> None:
        if default("schedule") != name:
            axes.plot(u[1:], _finite(usual.log_snr[1:]), color=GREY, ls="--", lw=1, label=f"'{default('schedule')}'")
        axes.plot(u[1:], _finite(table.log_snr[1:]), color=BLUE, label=f"'{name}'")

    return [
        Panel("Signal and noise", "level / T", "scale", scales),
        Panel("Log-SNR", "level / T", "log(alpha² / sigma²)", log_snr),
    ]


def _finite(values: Any) -> Any:
    return np.where(np.isfinite(values), values, np.nan)
