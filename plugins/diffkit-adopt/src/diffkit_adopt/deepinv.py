"""deepinv: a diffusion SDE with its denoiser, ``D(x / scale, sigma)``, which computes in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import along, as_times, on_path


class OfSDE(nn.Module):
    """The denoiser of an SDE."""

    def __init__(self, sde: Any):
        super().__init__()
        self.sde = sde

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return the estimate of clean data."""
        scale, sigma = self.sde.scale_t(time), self.sde.sigma_t(time)
        out: Tensor = self.sde.denoiser((x / along(scale, x)).float(), sigma.float(), **conditions)
        return out.to(x.dtype)


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read an ``EDMDiffusionSDE`` or one of its kinds.

    Args:
        obj: The SDE, made with its denoiser.
        times: Times of the levels, rising.
        levels: How many, where times are not given.
    """
    if not hasattr(obj, "scale_t") or getattr(obj, "denoiser", None) is None:
        raise OptionError(f"{type(obj).__name__} is not a diffusion SDE with a denoiser; make it with denoiser=")

    def step(x: Tensor, t: float, s: float) -> Tensor:
        import importlib

        solver = importlib.import_module("deepinv.sampling.sde_solver").DDIMSolver
        run = solver(timesteps=torch.tensor([t, s], dtype=torch.float64))
        found: Tensor = run.sample(obj, x.double()).sample
        return found.to(x.dtype)

    path = lambda t: (obj.scale_t(t), obj.scale_t(t) * obj.sigma_t(t))  # noqa: E731
    alpha, sigma, time = on_path(as_times(times, 0.0, float(obj.T), levels), path, times is not None)
    return AdoptedModel(OfSDE(obj), alpha, sigma, time, "x_start", "deepinv", step=step)
