"""azula: a denoiser with its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import as_times, on_path


class Mean(nn.Module):
    """The mean of a denoiser's posterior."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return the estimate of clean data."""
        mean: Tensor = self.denoiser(x, time.to(x.dtype), **conditions).mean
        return mean


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read an azula ``Denoiser``.

    Args:
        obj: The denoiser.
        times: Times of the levels, in (0, 1].
        levels: How many, where times are not given.
    """
    from azula.sample import EulerSampler

    if not hasattr(obj, "schedule"):
        raise OptionError(f"{type(obj).__name__} has no schedule; adopt the Denoiser that holds the network")

    def step(x: Tensor, t: float, s: float) -> Tensor:
        ends = (torch.tensor(each, dtype=x.dtype) for each in (t, s))
        found: Tensor = EulerSampler(obj, silent=True).step(x, *ends)
        return found

    alpha, sigma, time = on_path(as_times(times, 0.0, 1.0, levels), obj.schedule, times is not None)
    return AdoptedModel(Mean(obj), alpha, sigma, time, "x_start", "azula", step=step)
