"""flow_matching: a velocity with the scheduler of its path, whose time runs from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import as_times, on_path
from diffkit_adopt._velocity import EstimateOfVelocity


def read(obj: Any, *, times: Any = None, levels: int = 1000) -> AdoptedModel:
    """Read a velocity.

    Args:
        obj: ``velocity(x, t)``, such as a ModelWrapper, on the straight path; or (velocity, scheduler).
        times: Times of the levels, falling from data to noise.
        levels: How many, where times are not given.
    """
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.solver import ODESolver

    velocity, scheduler = obj if isinstance(obj, tuple) else (obj, CondOTScheduler())
    if not callable(velocity):
        raise OptionError(f"{type(velocity).__name__} is not callable; adopt a function or module velocity(x, t)")

    def scales(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = scheduler(t)
        return at.alpha_t, at.sigma_t, at.d_alpha_t, at.d_sigma_t

    def step(x: Tensor, t: float, s: float) -> Tensor:
        grid = torch.tensor([t, s], dtype=x.dtype)
        each = lambda x, t: velocity(x, t.expand(len(x)))  # noqa: E731
        found: Tensor = ODESolver(each).sample(x, step_size=None, method="euler", time_grid=grid)
        return found

    alpha, sigma, time = on_path(as_times(times, 1.0, 0.0, levels), lambda t: scales(t)[:2], times is not None)
    straight = isinstance(scheduler, CondOTScheduler)  # where a step of Euler's method in time is one of DDIM
    network = EstimateOfVelocity(velocity, scales)
    return AdoptedModel(network, alpha, sigma, time, "x_start", "flow_matching", step=step if straight else None)
