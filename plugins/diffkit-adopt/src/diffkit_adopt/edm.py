"""EDM, EDM2 and descendants: a preconditioned network ``net(x, sigma, class_labels)`` that returns clean data."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import karras


class Denoised(nn.Module):
    """A preconditioned network under diffkit's calling convention."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the estimate of clean data; class_labels are one-hot, or None for no class."""
        given = () if class_labels is None else (class_labels,)
        out: Tensor = self.net(x, time.to(x.dtype), *given)
        return out.to(x.dtype)


def read(
    obj: Any, *, times: Any = None, levels: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> AdoptedModel:
    """Read a preconditioned network; its own range of sigma counts where it is narrower.

    Args:
        obj: The network.
        times: Sigmas of the levels, rising.
        levels: How many, evenly spaced in sigma^(1/7).
        sigma_min, sigma_max: The ends of these.
    """
    if not isinstance(obj, nn.Module) or not hasattr(obj, "sigma_data"):
        raise OptionError(f"{type(obj).__name__} has no sigma_data; adopt the network with its preconditioning")
    low = max(sigma_min, float(getattr(obj, "sigma_min", 0.0)))
    high = min(sigma_max, float(getattr(obj, "sigma_max", float("inf"))))
    sigma = karras(low, high, levels).numpy() if times is None else np.asarray(times, dtype=np.float64)
    nulls = {"class_labels": None} if getattr(obj, "label_dim", 0) else None
    return AdoptedModel(Denoised(obj), np.ones_like(sigma), sigma, sigma, "x_start", "EDM", nulls)
