"""sbi: a score or flow-matching estimator of a posterior, at one observation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import as_times, on_path


class AtObservation(nn.Module):
    """An estimator at one observation: its score, or its velocity, data at time 0.

    Attributes:
        estimator: The estimator.
        observation: The observation, (1, *condition_shape).
    """

    observation: Tensor

    def __init__(self, estimator: Any, observation: Tensor, flow: bool):
        super().__init__()
        self.estimator, self.flow = estimator, flow
        self.register_buffer("observation", observation, persistent=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the score, or the velocity towards noise."""
        at = self.observation.expand(len(x), *self.observation.shape[1:])
        time = time.to(x.dtype)
        out: Tensor = self.estimator.ode_fn(x, at, time) if self.flow else self.estimator.score(x, at, time)
        return out


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read an estimator.

    Args:
        obj: (estimator, observation).
        times: Times of the levels, rising.
        levels: How many, where times are not given.
    """
    if not isinstance(obj, tuple) or len(obj) != 2:
        raise OptionError("an estimator of sbi is adopted with its observation; give (estimator, observation)")
    estimator, observation = obj
    observation = torch.as_tensor(observation).reshape(1, *estimator.condition_shape)
    flow = not hasattr(estimator, "mean_t_fn") or type(estimator).__name__ == "FlowMatchingEstimator"

    def path(t: Tensor) -> tuple[Tensor, Tensor]:
        if flow:
            return 1 - t, t
        return tuple(f(t).reshape(len(t), -1)[:, 0] for f in (estimator.mean_t_fn, estimator.std_fn))

    first, last = float(estimator.t_min), float(estimator.t_max)
    alpha, sigma, time = on_path(as_times(times, first, last, levels), path, times is not None)
    network = AtObservation(estimator, observation, flow)
    return AdoptedModel(network, alpha, sigma, time, "velocity" if flow else "score", "sbi")
