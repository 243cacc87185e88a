"""torchebm: a FlowSampler, by its model, interpolant and prediction; its time runs from noise to data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel, ForeignNetwork
from diffkit_adopt._levels import as_times, on_path
from diffkit_adopt._velocity import EstimateOfVelocity

PREDICTIONS = {"NOISE": "eps", "SCORE": "score"}


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read a sampler.

    Args:
        obj: The FlowSampler.
        times: Times of the levels, falling from data to noise.
        levels: How many, where times are not given.
    """
    if not hasattr(obj, "interpolant") or not hasattr(obj, "prediction_type"):
        raise OptionError(f"{type(obj).__name__} has no interpolant; adopt the FlowSampler that holds the model")
    interpolant, sign = obj.interpolant, -1.0 if obj.negate_velocity else 1.0

    def scales(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (alpha, alpha_rate), (sigma, sigma_rate) = interpolant.compute_alpha_t(t), interpolant.compute_sigma_t(t)
        one = t * 0
        return alpha + one, sigma + one, alpha_rate + one, sigma_rate + one

    def model(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = obj.model(x, t * 0 if obj.negate_velocity else t.to(x.dtype), **conditions)
        return sign * out

    predicts = PREDICTIONS.get(obj.prediction_type.name, "x_start")
    network = EstimateOfVelocity(model, scales) if predicts == "x_start" else ForeignNetwork(model)
    network.add_module("own", obj.model)
    alpha, sigma, time = on_path(as_times(times, 1.0, 0.0, levels), lambda t: scales(t)[:2], times is not None)
    return AdoptedModel(network, alpha, sigma, time, predicts, "torchebm")
