"""deepinv: its SDE solvers on its variance-preserving, variance-exploding and flow-matching SDEs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.court.entry import Entry, import_alone
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "deepinv"
SDES = {"VariancePreservingDiffusion": 1.0, "VarianceExplodingDiffusion": 1.0, "FlowMatching": 0.999999}
"""Class -> its last time."""
SOLVERS: list[tuple[str, int, float, dict[str, Any]]] = [
    ("EulerSolver", 1, 0.0, {}),
    ("EulerSolver", 1, 1.0, {}),
    ("HeunSolver", 2, 0.0, {}),
    ("HeunSolver", 1, 1.0, {}),
    ("AncestralSolver", 1, 1.0, {}),
    ("DDPMSolver", 1, 0.0, {}),
    ("DDIMSolver", 1, 0.0, {}),
    ("DDIMSolver", 1, 0.0, {"eta": 0.5}),
]
"""Solver, order, alpha of the SDE (1 is the reverse SDE, 0 the ODE), options."""


def _sde(name: str, alpha: float) -> Any:
    sampling = import_alone("deepinv.sampling", ("torchvision",))
    return getattr(sampling, name)(denoiser=nn.Identity(), alpha=alpha, minus_one_one=False)


def path_of(name: str) -> TimePath:
    """Return the path of an SDE, by its own functions."""
    sde = _sde(name, 0.0)
    clean, noisy = (1e-9, SDES[name]) if name != "VarianceExplodingDiffusion" else (0.0, 1.0)
    return TimePath(f"deepinv {name}", sde.scale_t, lambda t: sde.scale_t(t) * sde.sigma_t(t), clean, noisy)


class Exact(nn.Module):
    """An exact denoiser ``D(x / scale, sigma)`` for the sigmas of some times."""

    def __init__(self, model: ExactModel, sde: Any, times: Tensor):
        super().__init__()
        self.model = model
        self.time_of = {float(sde.sigma_t(t).float()): t for t in times}

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        time = self.time_of[float(sigma)]
        return self.model.x_start(self.model.alpha(time) * x.flatten(1).double(), time).view_as(x)


def solver(name: str, sde: str, alpha: float, options: dict[str, Any]) -> Any:
    """Return ``solve(model, x, times)`` of a solver on an SDE."""
    kind = getattr(import_alone("deepinv.sampling.sde_solver", ("torchvision",)), name)

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        grid = torch.tensor(times, dtype=torch.float64)
        on = _sde(sde, alpha)
        on.denoiser = Exact(model, on, grid)
        return kind(timesteps=grid, **options).sample(on, x[:, :, None, None]).sample.flatten(1)

    return solve


def entries() -> Iterator[Entry]:
    """Yield the solvers that the release has on each of its SDEs, as far as log_snr 8."""
    there = import_alone("deepinv.sampling.sde_solver", ("torchvision",))
    for sde in SDES:
        path = path_of(sde)
        for name, order, alpha, options in SOLVERS:
            if not hasattr(there, name):
                continue
            shown = ", ".join([f"alpha={alpha:g}", *(f"{key}={value}" for key, value in options.items())])
            solve = solver(name, sde, alpha, options)
            yield Entry(f"{name}({shown})", solve, path, order, to_clean=_short_of_clean(path), precision="float32")


def _short_of_clean(path: TimePath) -> Any:
    ends = path.time_at(torch.tensor([-8.0, 8.0], dtype=torch.float64)).tolist()
    return lambda n: torch.linspace(*ends, n + 1, dtype=torch.float64).tolist()
