"""physicsnemo: a predictor of clean data with its noise scheduler."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel, ForeignNetwork
from diffkit_adopt._levels import as_times, karras, on_path


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read a predictor.

    Args:
        obj: (x0_predictor, noise_scheduler): ``x0_predictor(x, t)`` returns clean data.
        times: Times of the levels, rising.
        levels: How many, where times are not given.
    """
    if not isinstance(obj, tuple) or len(obj) != 2 or not hasattr(obj[1], "sigma_inv"):
        raise OptionError(
            "a predictor of physicsnemo is adopted with its scheduler; give (x0_predictor, noise_scheduler)"
        )
    predictor, scheduler = obj
    plain = type(scheduler).__name__ == "EDMNoiseScheduler"  # where sigma is time, and Euler's step in it is DDIM's

    def step(x: Tensor, t: float, s: float) -> Tensor:
        solver = importlib.import_module("physicsnemo.diffusion.samplers.euler").EulerSolver
        run = solver(scheduler.get_denoiser(x0_predictor=predictor))
        found: Tensor = run.step(x, *(torch.full((len(x),), each, dtype=x.dtype) for each in (t, s)))
        return found

    if times is None and hasattr(scheduler, "sigma_min"):
        times = scheduler.sigma_inv(karras(float(scheduler.sigma_min), float(scheduler.sigma_max), levels))
    time = as_times(times, 0.0, 1.0, levels)
    alpha, sigma, time_of = on_path(time, lambda t: (scheduler.alpha(t), scheduler.sigma(t)), times is not None)
    network = ForeignNetwork(lambda x, time, **conditions: predictor(x, time.to(x.dtype), **conditions))
    if isinstance(predictor, nn.Module):
        network.add_module("predictor", predictor)
    return AdoptedModel(network, alpha, sigma, time_of, "x_start", "physicsnemo", step=step if plain else None)
