"""Read models that hold a denoiser and the noise scales it was trained on.

Usage:

    import torch


    class Model:
        sigmas = torch.linspace(0.01, 10.0, 50)

        def denoise(self, x, sigma):
            return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


    system = diffkit.adopt(Model(), reader="my_part", data_shape=(1, 8, 8))
    samples = system.sample(4, steps=5, progress=False)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.system.adopting import AdoptedModel, ForeignNetwork


def read(obj: Any, *, times: Any = None) -> AdoptedModel:
    """Return a model in diffkit's terms.

    Args:
        obj: ``obj.denoise(x, sigma)`` returns clean data; ``obj.sigmas`` are the noise scales it knows, rising.
        times: Noise scales of the levels, in place of all that it knows.
    """
    if not hasattr(obj, "denoise") or not hasattr(obj, "sigmas"):
        raise OptionError(f"{type(obj).__name__} has no denoise or no sigmas; adopt the model that has both")
    sigma = np.asarray(obj.sigmas if times is None else times, dtype=np.float64)

    def step(x: Tensor, t: float, s: float) -> Tensor:
        """The library's own step goes here; it is compared with diffkit's, so that a wrong reading is found at once."""
        x_start: Tensor = obj.denoise(x, torch.full((len(x),), t, dtype=x.dtype))
        return x_start + s / t * (x - x_start)

    return AdoptedModel(ForeignNetwork(obj.denoise), np.ones_like(sigma), sigma, sigma, "x_start", "my_part", step=step)
