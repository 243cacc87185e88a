"""physicsnemo: its four solvers, with the right-hand sides of its EDM, VP and VE noise schedulers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.court.entry import Entry, import_alone
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "nvidia-physicsnemo"
UNUSED = ("nvtx", "omegaconf", "s3fs", "six", "timm", "warp")
SCHEDULERS = {"EDMNoiseScheduler": 100.0, "VENoiseScheduler": 10_000.0, "VPNoiseScheduler": 1.0}
"""Class -> a time with almost only noise."""
SOLVERS: list[tuple[str, int, dict[str, Any]]] = [
    ("EulerSolver", 1, {}),
    ("HeunSolver", 2, {}),
    ("HeunSolver", 2, {"alpha": 0.5}),
    ("EDMStochasticEulerSolver", 1, {"S_churn": 10.0}),
    ("EDMStochasticHeunSolver", 1, {"S_churn": 10.0}),
]


def _samplers() -> Any:
    return import_alone("physicsnemo.diffusion.samplers", UNUSED)


def _scheduler(name: str) -> Any:
    return getattr(import_alone("physicsnemo.diffusion.noise_schedulers", UNUSED), name)()


def path_of(name: str) -> TimePath:
    """Return the path of a noise scheduler, by its own functions."""
    scheduler = _scheduler(name)
    return TimePath(f"physicsnemo {name}", scheduler.alpha, scheduler.sigma, 0.0, SCHEDULERS[name])


def solver(name: str, scheduler: str, options: dict[str, Any]) -> Any:
    """Return ``solve(model, x, times)`` of a solver with a scheduler's right-hand side."""
    kind, of = getattr(_samplers(), name), _scheduler(scheduler)

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        rhs = of.get_denoiser(x0_predictor=model.x_start)
        given = dict(options)
        if "S_churn" in given:
            given |= dict(num_steps=len(times) - 1)
        run = kind(rhs, **given)
        for t, s in pairwise(times):
            x = run.step(x, *(torch.full((len(x),), u, dtype=torch.float64) for u in (t, s)))
        return x

    return solve


def entries() -> Iterator[Entry]:
    """Yield its solvers on the paths that are not those of SDEs only."""
    for scheduler in SCHEDULERS:
        path = path_of(scheduler)
        for name, order, options in SOLVERS:
            if "S_churn" in options and scheduler != "EDMNoiseScheduler":
                continue  # raised noise leaves the range of VP's sigma; where it may be raised is for its users to say
            shown = ", ".join(f"{key}={value:g}" for key, value in options.items())
            yield Entry(f"{name}({shown})", solver(name, scheduler, options), path, order)
