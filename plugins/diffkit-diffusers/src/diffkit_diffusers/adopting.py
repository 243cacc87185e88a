"""A model of diffusers with its scheduler, for `diffkit.adopt`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_diffusers.networks import LabelledNetwork

PREDICTIONS = {"epsilon": "eps", "sample": "x_start", "v_prediction": "v"}


def read(obj: Any) -> AdoptedModel:
    """Read a model that takes class labels or nothing, and the scheduler that holds its levels.

    Args:
        obj: (model, scheduler); the scheduler is any of the discrete chain, with ``alphas_cumprod``.
    """
    if not isinstance(obj, tuple) or len(obj) != 2 or not hasattr(obj[1], "alphas_cumprod"):
        raise OptionError("a model of diffusers is adopted with its scheduler; give (model, scheduler)")
    model, scheduler = obj
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    predicts = PREDICTIONS.get(scheduler.config.get("prediction_type", "epsilon"))
    if predicts is None:
        raise OptionError(
            f"prediction_type {scheduler.config.prediction_type!r} is not one of {', '.join(PREDICTIONS)}"
        )
    network = LabelledNetwork(model)

    def step(x: Tensor, t: float, s: float) -> Tensor:
        from diffusers import DDIMScheduler

        kind: Any = DDIMScheduler
        home = kind.from_config(scheduler.config, clip_sample=False, thresholding=False)
        home.num_inference_steps = len(alpha_bar) // round(t - s)
        times = torch.full((len(x),), t, dtype=torch.float32)
        found: Tensor = home.step(network(x, times), int(t), x).prev_sample
        return found

    time = np.arange(len(alpha_bar), dtype=np.float64)
    whole = len(alpha_bar) % 8 == 0  # the levels that are compared are then a step of DDIM apart
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return AdoptedModel(network, alpha, sigma, time, predicts, "diffusers", step=step if whole else None)
