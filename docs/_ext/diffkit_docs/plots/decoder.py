"""A decoder: the likelihood of a value around the mean, at several standard deviations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from diffkit_docs.figures import COLORS, Panel

_STDS = (0.02, 0.1, 0.5)


def panels(name: str, part: Any) -> list[Panel]:
    """Return the log-likelihood, in nats, of values of data whose mean is 0.2."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)

    def draw(axes: Axes) -> None:
        for std, color in zip(_STDS, COLORS, strict=False):
            log_variance = torch.full_like(x, 2 * np.log(std))
            value = part.log_prob(x, torch.full_like(x, 0.2), log_variance)
            axes.plot(x, value.clamp(min=-40), color=color, label=f"std {std:g}")

    return [Panel("Log-likelihood around a mean of 0.2", "value of the data", "nats", draw)]
