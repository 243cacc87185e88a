"""What the solver tests share: systems on every kind of path, exact end points, and a measure of order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffkit
from diffkit.protocols import Level, Prediction
from diffkit.registry.resolve import resolve
from diffkit.system.sampling import Program, _program, sampling_program
from diffkit.table import ProcessTable, Steps
from diffkit.testing._paths import LINEAR, VE, VP, WITHOUT_SIGNAL, middle_segment
from diffkit.testing.oracles import GaussianOracle, MixtureOracle

PATHS = (VP, VE, LINEAR)
SEGMENTS = tuple(middle_segment(path) for path in PATHS)
FINEST = (160, 320, 640)

SOLVERS = [
    "euler", "heun", "dpmpp_2m", "dpm_solver_1", "dpm_solver_2", ("dpm_solver_2", {"r": 0.7}), "dpm2", "dpm_solver_3",
    "dpmpp_2s", ("dpmpp_2s", {"r": 0.3}), "dpmpp_3m", "deis", ("deis", {"estimates": 2}), ("deis", {"estimates": 1}),
    ("deis", {"corrected_start": False}), "lms", ("lms", {"estimates": 2}), ("lms", {"corrected_start": False}), "pndm",
    "unipc", ("unipc", {"estimates": 1}), ("unipc", {"estimates": 3}), ("unipc", {"variant": "bh1"}),
    ("euler_ancestral", {"eta": 0.0}), ("dpm2_ancestral", {"eta": 0.0}), ("sde_dpmpp_2m", {"eta": 0.0}),
    ("dpmpp_2s_ancestral", {"eta": 0.0}), ("sde_dpmpp_3m", {"eta": 0.0}),
    ("churn", {"s_churn": 0.0}), ("restart", {"times": 0}),
]  # fmt: skip
"""Deterministic ones, every option that changes the arithmetic."""

NOISY = [
    "ancestral", ("ddim", {"eta": 1.0}), "euler_ancestral", ("euler_ancestral", {"eta": 0.5}),
    ("euler_ancestral", {"variance": "learned"}), "dpm2_ancestral", ("dpm2_ancestral", {"variance": "learned"}),
    "sde_dpmpp_2m", ("sde_dpmpp_2m", {"eta": 2.0}), ("sde_dpmpp_2m", {"variance": "learned"}), "churn", "restart",
    "dpmpp_2s_ancestral", ("dpmpp_2s_ancestral", {"eta": 0.5, "r": 0.7}), "dpmpp_sde",
    ("dpmpp_sde", {"eta": 0.5, "r": 0.3}), "sde_dpmpp_3m", ("sde_dpmpp_3m", {"eta": 0.5}),
    ("sde_dpmpp_3m", {"variance": "learned"}), ("dpmpp_2s_ancestral", {"variance": "learned"}),
    ("restart", {"times": 1, "rho_min": 0.5, "rho_max": 2.0}), "predictor_corrector",
]  # fmt: skip
MIXTURE = MixtureOracle([0.3, 0.7], [[-0.8], [0.5]], 0.25)
"""Two modes, 1-D: the flow of a point is found by matching quantiles."""
GAUSSIAN = GaussianOracle(0.3, 0.5)


def system_on(path: Any, num_steps: int, **parts: Any) -> diffkit.System:
    """A system without a network, data (1,), that any sampler runs on."""
    plain = dict(
        mean="x_start",
        var="fixed_small",
        loss="vlb",
        sampler="ddim",
        timesteps="uniform",
        bins=None,
        rescale_time=False,
    )
    return diffkit.compose(schedule=path, backbone=None, num_steps=num_steps, data_shape=(1,), **plain | parts)


def part(sampler: Any) -> Any:
    """A sampler from its name, (name, options) or instance."""
    return resolve("sampler", sampler)[0]


def program_between(system: diffkit.System, sampler: Any) -> Program:
    """The steps of a sampler from level T to level 1 of a system's table: both ends have finite log-SNR."""
    chosen = part(sampler)
    table = system.table
    rows = np.arange(table.num_steps, 1, -1)
    steps = Steps(table.at(rows), table.at(rows - 1))
    return _program(system.parts, chosen, table, steps, rows, rows - 1)


def run(program: Program, denoise: Callable[[Tensor, Level], Prediction], x: Tensor, noise_fn: Any = None) -> Tensor:
    for moment in program.run(denoise, x, noise_fn):
        x = moment.x
    return x


def quantile_flow(oracle: MixtureOracle, x: Tensor, t: tuple[float, float], s: tuple[float, float]) -> Tensor:
    """Where the probability-flow ODE takes 1-D data: it keeps quantiles. By bisection, to rounding."""
    share = _cdf(oracle, x, *t)
    low, high = x.new_full(x.shape, -400.0), x.new_full(x.shape, 400.0)
    for _ in range(120):
        middle = (low + high) / 2
        below = _cdf(oracle, middle, *s) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _cdf(oracle: MixtureOracle, x: Tensor, alpha: float, sigma: float) -> Tensor:
    weights, std = oracle.weights / oracle.weights.sum(), math.sqrt(alpha**2 * float(oracle.std) ** 2 + sigma**2)
    return (weights * torch.special.ndtr((x - alpha * oracle.means[:, 0]) / std)).sum(1, keepdim=True)


def ends(table: ProcessTable) -> tuple[tuple[float, float], tuple[float, float]]:
    """(alpha, sigma) of level T and of level 1."""
    return (table.alpha[-1], table.sigma[-1]), (table.alpha[1], table.sigma[1])


def points(table: ProcessTable, count: int = 15) -> Tensor:
    """Quantiles of what sampling starts from, (count, 1) float64."""
    share = torch.linspace(0.03, 0.97, count, dtype=torch.float64)[:, None]
    return torch.special.ndtri(share) * float(table.total_std[-1])


def errors(
    path: Any, sampler: Any, oracle: Any = MIXTURE, counts: tuple[int, ...] = FINEST, **parts: Any
) -> list[float]:
    """Largest error at the end of a segment for each number of steps; the grid has one level more than steps."""
    out = []
    for count in counts:
        system = system_on(path, count + 1, **parts)
        x = points(system.table)
        flow = oracle.flow if isinstance(oracle, GaussianOracle) else lambda *a: quantile_flow(oracle, *a)
        wanted = flow(x, *ends(system.table))
        found = run(program_between(system, sampler), oracle, x)
        out.append(float((found - wanted).abs().max()))
    return out


def order(found: list[float], counts: tuple[int, ...] = FINEST) -> float:
    """Slope of a straight line through log(error) against log(steps), negated."""
    return float(-np.polyfit(np.log(counts), np.log(found), 1)[0])


__all__ = [
    "FINEST", "GAUSSIAN", "LINEAR", "MIXTURE", "NOISY", "PATHS", "SEGMENTS", "SOLVERS", "VE", "VP", "WITHOUT_SIGNAL",
    "ends", "errors", "order", "part", "points", "program_between", "quantile_flow", "run", "sampling_program",
    "system_on",
]  # fmt: skip
