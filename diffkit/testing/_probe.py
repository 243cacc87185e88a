"""Run a sampler's steps under an exact denoiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import Composition, Denoise, Level, Prediction, Sampler, State
from diffkit.system.sampling import Program, encoding_program, sampling_program, still_program
from diffkit.table import F64, ProcessTable
from diffkit.testing._check import LawError, Where, record_where
from diffkit.testing._exact_runs import NORMAL, POINT, start_points
from diffkit.testing._paths import WHOLE, WITHOUT_SIGNAL, AnyPath, LevelsOnly, NoisePath, compose_on_path
from diffkit.testing.oracles import step_estimate


@frozen(eq=False)
class PreparedSampler:
    """Sampler prepared for one table, to run step by step in the checks.

    Attributes:
        sampler: The sampler.
        program: Its steps, from level T down to 0, or from level 1 up to T.
        parts: The composition it is part of.
        path: The path its table is on.
        levels: The row of the table each step starts from, then the one the last step goes to.
    """

    sampler: Sampler
    program: Program
    parts: Composition
    path: AnyPath
    levels: tuple[int, ...]

    @property
    def table(self) -> ProcessTable:
        """Return the program's table."""
        return self.parts.table

    @property
    def where(self) -> Where:
        """Return the path and number of steps, as the place named in a result."""
        return Where(self.path.label, self.table.num_steps)

    @property
    def points(self) -> list[tuple[float, float]]:
        """Return alpha and sigma where each step starts, then where the last one goes."""
        return [(float(self.table.alpha[k]), float(self.table.sigma[k])) for k in self.levels]

    @property
    def rounding(self) -> float:
        """Return what counts as rounding in float64."""
        return 1e-8

    def draws(self, steps: int) -> int:
        """Return how many tensors of noise some steps use."""
        return steps if self.sampler.stochastic else 0

    def run_exact(self, oracle: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """Yield x after every step with an exact denoiser."""
        return self.run(self.with_variance(oracle), x, noises or None)

    @property
    def plan(self) -> dict[str, F64]:
        """Return the columns of the sampler's plan."""
        return dict(self.program.columns.blocks["coef"])

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the rows of coefficients that the steps read, one for each step."""
        return self.program.columns.on(torch.device("cpu"), dtype)

    def row(self, i: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the row of coefficients that step i reads."""
        return self.matrix(dtype)[i]

    def step(
        self, denoise: Denoise, x: Tensor, state: State, i: int, noise: Tensor | None, row: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Take step i; an error for lack of noise says so."""
        row = self.row(i, x.dtype) if row is None else row
        with torch.no_grad():
            try:
                return self.program.step(denoise, x, state, row, noise, self.is_last(i))
            except Exception as error:
                if noise is None and self._works_with_noise(denoise, x, state, i, row):
                    error.add_note("noise is None, as `stochastic` of the sampler is False")
                raise

    def _works_with_noise(self, denoise: Denoise, x: Tensor, state: State, i: int, row: Tensor) -> bool:
        with suppress(Exception):
            self.program.step(denoise, x, state, row, torch.zeros_like(x), self.is_last(i))
            return True
        return False

    def is_last(self, i: int) -> bool:
        """Return the argument ``last`` of step i."""
        return self.program.is_last(i)

    def run(self, denoise: Denoise, x: Tensor, noises: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """Yield x after every step; ``noises`` holds one tensor for each step, zeros by default."""
        with torch.no_grad():
            state = self.sampler.init(x)
        for i in range(self.program.num_steps):
            noise = torch.zeros_like(x) if noises is None else noises[i]
            x, state = self.step(denoise, x, state, i, noise if self.sampler.stochastic else None)
            yield x

    def with_variance(self, oracle: Any) -> Denoise:
        """Return an oracle as a denoiser that also returns the posterior's log-variance.

        Where a step tells it where it goes, it is the exact flow map.
        """
        var = self.parts.var

        def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
            known = None if not level.coefficients else var.log_variance(None, level.coefficients)
            x_start = oracle(x, level).x_start if to is None else step_estimate(oracle, x, level, to)
            return Prediction(x_start, known)

        return denoise


def prepare_sampler(sampler: Sampler, path: AnyPath, num_steps: int) -> PreparedSampler:
    """Prepare a sampler for the way down from level T to 0; raises `CompositionError` if it refuses the path."""
    record_where(Where(path.label, num_steps))
    parts = _sampler_parts(sampler, path, num_steps)
    program = sampling_program(parts, sampler, parts.table)
    return PreparedSampler(sampler, program, parts, path, (num_steps, *program.levels))


def prepare_encoder(sampler: Sampler, path: NoisePath, num_steps: int) -> PreparedSampler:
    """Prepare a deterministic sampler for the way up from level 1 to T."""
    record_where(Where(path.label, num_steps, detail="upwards"))
    parts = _sampler_parts(sampler, path, num_steps)
    program = encoding_program(parts, sampler, parts.table, past_end=False)
    return PreparedSampler(sampler, program, parts, path, tuple(range(1, num_steps + 1)))


def tells_the_end(sampler: Sampler) -> bool:
    """Return whether a sampler tells the network where a step goes, found by running some steps."""
    prepared = prepare_sampler(sampler, accepted_paths(sampler)[0], 3)
    told: list[Level | None] = []

    def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        told.append(to)
        return prepared.with_variance(POINT)(x, level)

    for _ in prepared.run(denoise, torch.zeros(1, 2, dtype=torch.float64)):
        pass
    return any(to is not None for to in told)


def prepare_still(sampler: Sampler, path: NoisePath, num_steps: int) -> PreparedSampler:
    """Prepare a sampler for steps from every level to itself."""
    record_where(Where(path.label, num_steps, detail="from every level to itself"))
    parts = _sampler_parts(sampler, path, num_steps)
    program = still_program(parts, sampler, parts.table)
    return PreparedSampler(sampler, program, parts, path, (num_steps, *program.levels))


def _sampler_parts(sampler: Sampler, path: AnyPath, num_steps: int) -> Composition:
    """Return a system with a sampler on a path, composed once: only the table depends on the number of steps."""
    parts: Composition = compose_on_path(path, 20, sampler=sampler).parts
    return attrs.evolve(parts, table=path.table(num_steps))


def accepted_paths(sampler: Sampler, paths: Sequence[NoisePath] = WHOLE) -> list[NoisePath]:
    """Return the paths that a sampler does not refuse; it must accept one of the complete ones."""
    found = []
    for path in paths:
        try:
            compose_on_path(path, 20, sampler=sampler)
        except (CompositionError, OptionError):
            continue
        found.append(path)
    if not found and tuple(paths) == WHOLE:
        raise LawError("a path it works on", "problems() or plan() refuses vp, ve and linear")
    return found


def prepared_samplers(sampler: Sampler, counts: Sequence[int] = (1, 2, 3, 20)) -> Iterator[PreparedSampler]:
    """Yield a sampler prepared on every path it accepts, also those without signal at T, for several numbers of steps.

    One that evaluates between levels also runs on schedules without such levels: it gets the nearest level, or the one
    that the step starts from.
    """
    for path in [*accepted_paths(sampler), *accepted_paths(sampler, WITHOUT_SIGNAL)]:
        for num_steps in counts:
            found = prepare_sampler(sampler, path, num_steps)
            yield found
            if found.program.num_nodes:
                yield prepare_sampler(sampler, LevelsOnly(path), num_steps)


def round_trip_error(up: PreparedSampler, down: PreparedSampler) -> float:
    """Return the largest distance after going up from level 1 and back down, in units of the scale of x_1."""
    alpha, sigma = up.points[0]
    x = alpha * start_points(sigma / alpha)
    *_, top = up.run(up.with_variance(NORMAL), x)
    steps = down.program.num_steps - 1
    for _, after in zip(range(steps), down.run(down.with_variance(NORMAL), top), strict=False):
        back = after
    return float((back - x).abs().max()) / math.hypot(alpha, sigma)
