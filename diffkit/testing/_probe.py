"""Run a sampler's steps under an exact denoiser, and find their effect on a normal distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import attrs
import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import Composition, Denoise, Level, Prediction, Sampler, State
from diffkit.system.sampling import Program, encoding_program, sampling_program, still_program
from diffkit.table import F64, ProcessTable
from diffkit.testing._check import LawError, Where, record_where
from diffkit.testing._paths import WHOLE, WITHOUT_SIGNAL, AnyPath, LevelsOnly, NoisePath, compose_on_path
from diffkit.testing.oracles import DiracOracle, GaussianOracle, MixtureOracle, step_estimate

POINT = DiracOracle([0.7, -0.4])
NORMAL = GaussianOracle(mean=[0.7, -0.4], std=[0.5, 1.6])
"""Neither is centred, and the widths straddle 1, where many mistakes cancel."""
PICTURE = DiracOracle(torch.linspace(-0.5, 0.9, 12, dtype=torch.float64).view(2, 2, 3))
"""One picture: no two elements are alike, and neither the channels nor their sides have a mean of 0."""
MIXTURE = MixtureOracle(weights=[0.4, 0.6], means=[[-0.9, 0.5], [0.8, -0.3]], std=0.35)
"""Its denoiser is not linear: on normal data alone some methods converge faster than they do."""
ORACLES = (NORMAL, MIXTURE)


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


@frozen(eq=False)
class StepDistribution:
    """Distribution of data after a sampling step: mean and standard deviation of every element, each (C, *S).

    Attributes:
        mean, std: Of every element.
        shares: What each source of chance adds to it, (sources, C, *S).
    """

    mean: Tensor
    std: Tensor
    shares: Tensor

    @property
    def covariance(self) -> Tensor:
        """Return the covariance of all pairs of elements, (D, D)."""
        flat = self.shares.flatten(1)
        return flat.T @ flat


def propagate_normal(
    prepared: PreparedSampler, oracle: Any, start: GaussianOracle, steps: int | None = None
) -> list[StepDistribution]:
    """Return exactly what the steps make of normal data, given that they are affine in x and noise.

    One row of the batch starts at the mean. For each element, one row starts a standard deviation away from it, and
    one for each step receives unit noise there; the final difference of each row from the first is that source's share.
    A last row receives all of them twice.

    Args:
        prepared: A sampler on a table.
        oracle: Exact denoiser, affine in x.
        start: Distribution at the first level.
        steps: How many steps; all by default.
    Raises:
        LawError: The steps are not affine, so that the result would be meaningless.
    """
    steps = prepared.program.num_steps if steps is None else steps
    moves = torch.eye(start.mean.numel(), dtype=start.mean.dtype).view(-1, *start.mean.shape)
    own = [slice(1 + len(moves) * i, 1 + len(moves) * (i + 1)) for i in range(steps + 1)]
    used = own if prepared.sampler.stochastic else own[:1]
    x = start.mean.repeat(used[-1].stop + 1, *[1] * start.mean.ndim)
    x[own[0]] += start.std * moves
    x[-1] += 2 * start.std * moves.sum(0)
    noises = []
    for rows in own[1:]:
        noise = torch.zeros_like(x)
        if prepared.sampler.stochastic:
            noise[rows] = moves
            noise[-1] = 2 * moves.sum(0)
        noises.append(noise)
    found = []
    for i, (_, after) in enumerate(
        zip(range(steps), prepared.run(prepared.with_variance(oracle), x, noises), strict=False)
    ):
        shares = after[1:-1] - after[0]
        _require_affine(after, shares, attrs.evolve(prepared.where, level=prepared.levels[i]))
        found.append(StepDistribution(after[0], shares.square().sum(0).sqrt(), shares))
    return found


def _require_affine(after: Tensor, shares: Tensor, where: Where) -> None:
    gap = (after[-1] - after[0] - 2 * shares.sum(0)).abs().max()
    size = 1 + after.abs().max()
    if not gap <= 1e-8 * size:
        raise LawError(
            "a step that is affine in x and noise when the denoiser is",
            f"twice the change gives {float(gap):.3g} more than twice the result",
            where,
            "clipping, a square of x, or a branch on its size inside the step",
        )


def distribution_error(prepared: PreparedSampler, steps: int) -> float:
    """Return the largest error of mean or standard deviation after some steps, in exact standard deviations."""
    t, s = prepared.levels[0], prepared.levels[steps]
    alpha, sigma = prepared.table.alpha, prepared.table.sigma
    exact = NORMAL.at(float(alpha[s]), float(sigma[s]))
    found = propagate_normal(prepared, NORMAL, NORMAL.at(float(alpha[t]), float(sigma[t])), steps)[-1]
    worst = torch.maximum((found.mean - exact.mean).abs(), (found.std - exact.std).abs()) / exact.std
    return float(worst.max())


def pointwise_error(prepared: PreparedSampler, steps: int, oracle: Any = NORMAL) -> float:
    """Return the largest distance from the exact ODE solution after some steps, in units of the scale of x_t."""
    t, s = (_alpha_sigma(prepared, k) for k in (prepared.levels[0], prepared.levels[steps]))
    x = t[0] * _start_points(t[1] / t[0])
    for _, after in zip(range(steps), prepared.run(prepared.with_variance(oracle), x), strict=False):
        found = after
    exact = s[0] * _solution(oracle, t[1] / t[0], s[1] / s[0])
    return float((found - exact).abs().max()) / math.hypot(*s)


def round_trip_error(up: PreparedSampler, down: PreparedSampler, oracle: Any = NORMAL) -> float:
    """Return the largest distance after going up from level 1 and back down, in units of the scale of x_1."""
    alpha, sigma = _alpha_sigma(up, 1)
    x = alpha * _start_points(sigma / alpha)
    *_, top = up.run(up.with_variance(oracle), x)
    steps = down.program.num_steps - 1
    for _, after in zip(range(steps), down.run(down.with_variance(oracle), top), strict=False):
        back = after
    return float((back - x).abs().max()) / math.hypot(alpha, sigma)


def _alpha_sigma(prepared: PreparedSampler, level: int) -> tuple[float, float]:
    return float(prepared.table.alpha[level]), float(prepared.table.sigma[level])


def _start_points(rho: float) -> Tensor:
    """Return x / alpha of five points from one tail to the other, where sigma / alpha is rho."""
    spread = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)[:, None]
    return spread * math.hypot(1.0, rho) * torch.tensor([1.0, -0.7], dtype=torch.float64)


@functools.lru_cache
def _known_solution(which: int, t: float, s: float) -> Tensor:
    return ORACLES[which].flow(_start_points(t), (1.0, t), (1.0, s))


def _solution(oracle: Any, t: float, s: float) -> Tensor:
    """Return x / alpha to which the ODE takes the points of `_start_points`; in rho it is the same on every path."""
    return _known_solution(ORACLES.index(oracle), float(f"{t:.13g}"), float(f"{s:.13g}"))


def fitted_order(counts: Sequence[int], errors: Sequence[float], floor: float = 1e-11) -> float:
    """Return the slope of log error over log steps, fitted to the three finest above rounding; inf if none."""
    usable = [(n, e) for n, e in zip(counts, errors, strict=True) if e > floor][-3:]
    if len(usable) < 2:
        return float("inf")
    steps, found = np.log([n for n, _ in usable]), np.log([e for _, e in usable])
    return float(-np.polyfit(steps, found, 1)[0])
