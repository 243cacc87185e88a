"""What is compared: schedules, means and samplers, with the exact network each composition would have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

import diffkit
from diffkit.gaussian import decode
from diffkit.protocols import ContinuousSchedule, Level, Prediction
from diffkit.registry import registry
from diffkit.table import ProcessTable
from diffkit.testing import MixtureOracle

DATA = MixtureOracle([0.3, 0.7], [[-0.8], [0.5]], 0.25)
LEVELS = 1000
STEPS = (5, 10, 20, 50, 100)
MEANS = ("eps", "x_start", "v")


@frozen
class Straight(ContinuousSchedule):
    """The path of rectified flow: ``alpha = 1 - u``, ``sigma = u``, u = k/T; known at any log_snr."""

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; level T has no signal."""
        u = np.arange(1, num_steps + 1) / num_steps
        return ProcessTable.from_alpha_sigma(1 - u, u, 1000 * u)

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std and time."""
        ratio = (-log_snr / 2).exp()
        return (1 + ratio**2).sqrt() / (1 + ratio), 1000 * ratio / (1 + ratio)


SCHEDULES: dict[str, tuple[str, Any, str]] = {
    "VP cosine": ("IDDPM's cosine, discrete, evenly spaced levels", "cosine", "linspace"),
    "VP linear": ("DDPM's linear, discrete, evenly spaced levels", "linear", "linspace"),
    "VE": (
        "sigma from 0.002 to 80, continuous, Karras spacing",
        ("log_linear", {"path": "ve", "log_snr_max": -2 * math.log(0.002), "log_snr_min": -2 * math.log(80.0)}),
        "karras",
    ),
    "straight path": ("rectified flow, no signal at T, continuous, evenly spaced levels", Straight(), "linspace"),
    "zero terminal SNR": (
        "the cosine rescaled, no signal at T, discrete, evenly spaced levels",
        ("zero_snr", {"of": "cosine"}),
        "linspace",
    ),
}
"""Name -> what it is, schedule, spacing."""

SAMPLERS: dict[str, Any] = {name: name for name in registry("sampler").built_in_names()} | {
    "ddim (eta = 1)": ("ddim", {"eta": 1.0}),
    "unipc (3 estimates)": ("unipc", {"estimates": 3}),
    "lms (4 estimates)": ("lms", {"estimates": 4}),
    "deis (2 estimates)": ("deis", {"estimates": 2}),
    "euler_ancestral (eta = 0.5)": ("euler_ancestral", {"eta": 0.5}),
    "sde_dpmpp_2m (eta = 0.5)": ("sde_dpmpp_2m", {"eta": 0.5}),
}


def system_of(schedule: Any, mean: str) -> diffkit.System:
    """Compose without a network; raises `CompositionError` where the parts do not fit."""
    return diffkit.compose(
        schedule=schedule, mean=mean, var="fixed_small", num_steps=LEVELS, data_shape=(1,), bins=None, backbone=None
    )


def exact(system: diffkit.System) -> Callable[[Tensor, Level], Prediction]:
    """A denoiser that goes through what the network would predict, with the variance part's log-variance."""
    var = system.parts.var

    def denoise(x: Tensor, level: Level) -> Prediction:
        x_start = DATA.x_start(x, level.alpha, level.sigma)
        out = (x_start - level.c_skip * x) / level.c_out
        return Prediction(
            decode(out, x, level), None if not level.coefficients else var.log_variance(None, level.coefficients)
        )

    return denoise


def flow_to_data(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Where the probability-flow ODE takes 1-D data from a level: it keeps quantiles. By bisection, to rounding."""
    share = _below(x, alpha, sigma)
    low, high = torch.full_like(x, -20.0), torch.full_like(x, 20.0)
    for _ in range(100):
        middle = (low + high) / 2
        left = _below(middle, 1.0, 0.0) < share
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (low + high) / 2


def _below(x: Tensor, alpha: float, sigma: float) -> Tensor:
    weights = DATA.weights / DATA.weights.sum()
    std = math.sqrt(alpha**2 * float(DATA.std) ** 2 + sigma**2)
    return (weights * torch.special.ndtr((x - alpha * DATA.means[:, 0]) / std)).sum(1, keepdim=True)


def moments_of_data() -> tuple[float, float]:
    """Mean and standard deviation of the mixture."""
    weights, means = DATA.weights / DATA.weights.sum(), DATA.means[:, 0]
    mean = float((weights * means).sum())
    return mean, math.sqrt(float((weights * means**2).sum()) - mean**2 + float(DATA.std) ** 2)
