"""A model of diffusers with its scheduler, for `diffkit.adopt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_diffusers.networks import ContextNetwork, LabelledNetwork

PREDICTIONS = {"epsilon": "eps", "sample": "x_start", "v_prediction": "v"}


def read(obj: Any) -> AdoptedModel:
    """Read a model with the scheduler that holds its levels.

    Class labels are the condition ``y``, embedded text is ``context``. A DiT and a network of text know what means
    "none"; for a UNet2DModel with labels, null_conditions of `diffkit.adopt` says which label does, if any.

    Args:
        obj: (model, scheduler); the scheduler is any of the discrete chain, with ``alphas_cumprod``.
    """
    if not isinstance(obj, tuple) or len(obj) != 2 or not hasattr(obj[1], "alphas_cumprod"):
        raise OptionError("a model of diffusers is adopted with its scheduler; give (model, scheduler)")
    model, scheduler = obj
    alpha_bar = scheduler.alphas_cumprod.double().cpu().numpy()
    predicts = PREDICTIONS.get(scheduler.config.get("prediction_type", "epsilon"))
    if predicts is None:
        raise OptionError(
            f"prediction_type {scheduler.config.prediction_type!r} is not one of {', '.join(PREDICTIONS)}"
        )
    config, channels = model.config, model.config.in_channels
    network, nulls = _network(model, config)
    example = {"y": torch.zeros(2, dtype=torch.int64)} if _is_labelled(config) else {}
    if isinstance(network, ContextNetwork):
        example["context"] = torch.zeros(2, 1, network.width)
    comparable = len(alpha_bar) % 8 == 0  # the levels that are compared are then a step of DDIM apart
    comparable &= config.get("class_embed_type") in (None, "timestep")  # others take vectors, not labels

    def step(x: Tensor, t: float, s: float) -> Tensor:
        from diffusers import DDIMScheduler

        kind: Any = DDIMScheduler
        home = kind.from_config(scheduler.config, clip_sample=False, thresholding=False)
        home.num_inference_steps = len(alpha_bar) // round(t - s)
        home.alphas_cumprod = scheduler.alphas_cumprod.to(x)
        given = {name: value.to(x.device) for name, value in example.items()}
        out = network(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device), **given)
        found: Tensor = home.step(out[:, :channels], int(t), x).prev_sample
        return found

    return AdoptedModel(
        network,
        alpha=np.sqrt(alpha_bar),
        sigma=np.sqrt(1 - alpha_bar),
        time=np.arange(len(alpha_bar), dtype=np.float64),
        predicts=predicts,
        library="diffusers",
        var="learned_range" if config.get("out_channels") == 2 * channels else "fixed_small",
        null_conditions=nulls or None,
        step=step if comparable else None,
        example=example,
    )


def _network(model: Any, config: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the network, and the conditions that mean "none" where the model has some."""
    classes, width = config.get("num_embeds_ada_norm"), config.get("cross_attention_dim")
    if classes is None and isinstance(width, int):
        return ContextNetwork(model, width), {"context": 0.0}
    looks_up_time = config.get("time_embedding_type") == "learned"
    return LabelledNetwork(model, looks_up_time), {} if classes is None else {"y": classes}


def _is_labelled(config: Mapping[str, Any]) -> bool:
    kinds = ("num_embeds_ada_norm", "num_class_embeds", "class_embed_type")
    return any(config.get(kind) is not None for kind in kinds)
