"""flow_matching: ODESolver with the fixed-step methods of torchdiffeq, on the straight path; time runs to data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.court.entry import Entry
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "flow-matching"
PATH = TimePath("linear, time to the data", lambda t: t, lambda t: 1 - t, clean=1.0, noisy=0.0)
METHODS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Those of torchdiffeq that take any times."""


def solver(method: str) -> Any:
    """Return ``solve(model, x, times)`` of a method."""
    from flow_matching.solver import ODESolver

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return model.velocity(x, t.clamp(max=1 - 1e-12))

        grid = torch.tensor(times, dtype=torch.float64)
        return ODESolver(velocity).sample(x, step_size=None, method=method, time_grid=grid)

    return solve


def entries() -> Iterator[Entry]:
    """Yield the methods of its solver."""
    for method, order in METHODS.items():
        yield Entry(f"ODESolver(method={method!r})", solver(method), PATH, order)
