"""k-diffusion: the denoisers of its modules ``external`` and ``layers``, ``D(x, sigma)`` on the path alpha = 1."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel, ForeignNetwork
from diffkit_adopt._levels import karras


def read(
    obj: Any, *, times: Any = None, levels: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> AdoptedModel:
    """Read a denoiser; one of a discrete chain has its own sigmas.

    Args:
        obj: The denoiser.
        times: Sigmas of the levels, rising.
        levels: How many, evenly spaced in sigma^(1/7), where the denoiser has no sigmas of its own.
        sigma_min, sigma_max: The ends of these.
    """
    if not callable(obj) or not hasattr(obj, "inner_model"):
        raise OptionError(
            f"{type(obj).__name__} is not one of k-diffusion's denoisers; wrap the network in one of them"
        )
    own = getattr(obj, "sigmas", None)
    sigmas = karras(sigma_min, sigma_max, levels) if own is None else own.detach().double().cpu()
    sigma = sigmas.numpy() if times is None else np.asarray(times, dtype=np.float64)

    def step(x: Tensor, t: float, s: float) -> Tensor:
        sampling = importlib.import_module("k_diffusion.sampling")
        found: Tensor = sampling.sample_euler(obj, x, torch.tensor([t, s], dtype=x.dtype), disable=True)
        return found

    network = ForeignNetwork(lambda x, time, **conditions: obj(x, time.to(x.dtype), **conditions))
    network.add_module("denoiser", obj)
    return AdoptedModel(network, np.ones_like(sigma), sigma, sigma, "x_start", "k-diffusion", step=step)
