"""diffkit's own samplers, as anybody's: only their steps are run, on a table made of the times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

import diffkit
from benchmarks.court.entry import Entry
from diffkit.protocols import ContinuousSchedule, Level, Prediction
from diffkit.registry import registry
from diffkit.system.sampling import sampling_program
from diffkit.table import ProcessTable
from diffkit.testing import ExactModel, TimePath
from diffkit.testing.exact_model import PATHS

DISTRIBUTION = "diffkit"
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ddim": [{}, {"eta": 0.5}, {"eta": 1.0}],
    "dpmpp_sde": [{}, {"eta": 0.5}],
}


@frozen(eq=False)
class OnTimes(ContinuousSchedule):
    """The levels of a path at some times."""

    path: TimePath
    times: tuple[float, ...]

    def table(self, num_steps: int) -> ProcessTable:
        """Return the levels, cleanest first."""
        points = [self.path.at(t) for t in reversed(self.times)]
        alpha, sigma = zip(*points, strict=True)
        return ProcessTable.from_alpha_sigma(alpha, sigma, [*reversed(self.times)])

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return total_std and time."""
        time = self.path.time_at(log_snr.double())
        return (self.path.alpha(time) ** 2 + self.path.sigma(time) ** 2).sqrt(), time


def solver(name: str, options: dict[str, Any]) -> Any:
    """Return ``solve(model, x, times)`` of a sampler."""
    sampler = registry("sampler").create(name, **options)

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        levels = [t for t in times if model.path.at(t)[1] > 0]
        clean = len(levels) < len(times)
        schedule = OnTimes(model.path, tuple(levels))
        system = _system(schedule, sampler, len(levels))
        program = sampling_program(system.parts, sampler, system.parts.table)

        def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
            known = None if not level.coefficients else system.parts.var.log_variance(None, level.coefficients)
            model.watch(x, level.alpha, level.sigma)
            return Prediction(model.oracle.x_start(x, level.alpha, level.sigma), known)

        state = sampler.init(x)
        rows = program.columns.on(x.device, x.dtype)
        reached = max(i for i, level in enumerate(program.levels) if level == 1) + 1 if len(levels) > 1 else 0
        for i in range(len(rows) if clean else reached):
            noise = torch.randn_like(x) if sampler.stochastic else None
            x, state = program.step(denoise, x, state, rows[i], noise, program.is_last(i))
        return x

    return solve


def _system(schedule: OnTimes, sampler: Any, steps: int) -> Any:
    return diffkit.compose(
        schedule=schedule, mean="x_start", var="fixed_small", loss="simple", sampler=sampler, backbone=None,
        num_steps=steps, data_shape=(2,), rescale_time=False, bins=None,
    )  # fmt: skip


def entries() -> Iterator[Entry]:
    """Yield every built-in sampler on the straight path; tests hold them to the laws on all three."""
    for name in registry("sampler").built_in_names():
        for options in OPTIONS.get(name, [{}]):
            sampler = registry("sampler").create(name, **options)
            for path in (PATHS["linear"],):
                shown = ", ".join(f"{key}={value}" for key, value in options.items())
                yield Entry(f"{name}({shown})", solver(name, options), path, sampler.order)
