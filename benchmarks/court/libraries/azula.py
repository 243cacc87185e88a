"""azula: its samplers on any schedule; times are given by the property that they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.court.entry import Entry, to_almost_clean
from diffkit.testing import ExactModel
from diffkit.testing.exact_model import PATHS

DISTRIBUTION = "azula"
SOLVERS: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "DDPMSampler": (1, [{}]),
    "DDIMSampler": (1, [{}, {"eta": 0.5}]),
    "EulerSampler": (1, [{}]),
    "HeunSampler": (2, [{}]),
    "ItoSampler": (1, [{}, {"eta": 0.5}]),
    "zABSampler": (0, [{"order": 2}, {"order": 3}]),
    "vABSampler": (0, [{"order": 2}, {"order": 3}]),
    "zEABSampler": (0, [{"order": 2}, {"order": 3}]),
    "xEABSampler": (0, [{"order": 2}, {"order": 3}]),
    "REABSampler": (0, [{"order": 2}, {"order": 3}]),
}
"""Class -> order (0: as its option ``order`` says), options. The bias of PCSampler is not one of steps."""


def solver(name: str, options: dict[str, Any]) -> Any:
    """Return ``solve(model, x, times)`` of a sampler."""
    import azula.sample

    kind = getattr(azula.sample, name)

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        class Denoiser:
            @staticmethod
            def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
                return model.alpha(t), model.sigma(t)

            def __call__(self, x: Tensor, t: Tensor) -> Any:
                return _Mean(model.x_start(x, t))

        grid = torch.tensor(times, dtype=torch.float64)
        on_times = type(name, (kind,), {"timesteps": property(lambda self: grid)})
        return on_times(Denoiser(), steps=len(times) - 1, silent=True, **options)(x)

    return solve


class _Mean:
    """A posterior by its mean, which is all that samplers read."""

    def __init__(self, mean: Tensor):
        self.mean = mean


def entries() -> Iterator[Entry]:
    """Yield its samplers on a curved and on a straight path, short of clean data, which its schedules do not reach."""
    for name, (order, variants) in SOLVERS.items():
        for options in variants:
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            for path in (PATHS["vp"], PATHS["linear"]):
                least = order or options["order"]
                yield Entry(f"{name}({shown})", solver(name, options), path, least, to_clean=to_almost_clean(path))
