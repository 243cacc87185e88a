"""The sampling loop: a sampler's plan on a table as one matrix, and a pure step function of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.errors import OptionError, ProtocolError
from diffkit.protocols import (
    Composition,
    Denoise,
    Level,
    MultistageSampler,
    Prediction,
    RoutedSampler,
    Sampler,
    State,
    StepRow,
)
from diffkit.system.coefficients import CoefficientTable, NamedColumns, level_coefficients, node_coefficients
from diffkit.system.numerics import computing
from diffkit.system.randomness import NoiseFn
from diffkit.table import F64, Coefs, ProcessTable, Steps
from diffkit.tensors import ordinary

Denoisers = Denoise | Sequence[Denoise]
"""One denoiser for all steps, or one for each."""


@frozen(eq=False)
class TrajectoryPoint:
    """One point of a trajectory; with a codec both are latents, of which `System.from_latents` makes data.

    Attributes:
        step: Number of steps so far, from 1.
        level: Level of x in the table; the one below, where it lies between two.
        x: Data there, (B, C, *S).
        x_start: The estimate of clean data used by the step, (B, C, *S).
        state: The sampler's; with x, all that the steps after this one need.
    """

    step: int
    level: int
    x: Tensor
    x_start: Tensor
    state: State = ()


class TimeOfRows:
    """The time of one level for a batch, made at the first call for its size: an operation less in each step.

    Torch refuses to write into a time that is spread over several rows, but not into one of a single row. That has
    memory of its own, and is made again once a network has written into it.
    """

    def __init__(self, time: Tensor):
        self._time = time
        self._rows = 0, time

    def __call__(self, batch: int) -> Tensor:
        """Return the time once for each of ``batch`` examples, (batch,)."""
        size, rows = self._rows
        if size != batch or rows._version:
            rows = self._time.expand(batch)
            rows = rows.clone() if batch == 1 else rows
            self._rows = batch, rows
        return rows


class Row:
    """A `StepRow` that unpacks and caches each part at its first use: most samplers never read s.

    Unpacking costs as much as two or three operations on small data. The cache is written by hand, as torch.compile
    does not support `functools.cached_property`.

    Args:
        columns, values, ndim: As in `CoefficientTable.level`.
        num_nodes: Number of further levels within the step.
        shared: Whether several calls take this step, which then share `Level.time_of_rows`.
    """

    def __init__(self, columns: CoefficientTable, values: Tensor, ndim: int, num_nodes: int, shared: bool = False):
        self.values = values
        self._columns, self._ndim, self._num_nodes, self._shared = columns, ndim, num_nodes, shared
        self._t: Level | None = None
        self._s: Level | None = None
        self._coef: Mapping[str, Tensor] | None = None
        self._nodes: tuple[Level, ...] | None = None

    @property
    def t(self) -> Level:
        """The level the step starts from."""
        if self._t is None:
            self._t = self._level("t")
        return self._t

    @property
    def s(self) -> Level:
        """The level the step goes to."""
        if self._s is None:
            self._s = self._level("s")
        return self._s

    @property
    def coef(self) -> Mapping[str, Tensor]:
        """The plan's coefficients of this step, 0-d or (B,1..)."""
        if self._coef is None:
            self._coef = self._columns.read(self.values, self._ndim, "coef")
        return self._coef

    @property
    def nodes(self) -> tuple[Level, ...]:
        """Further levels within the step, in the order of `MultistageSampler.nodes`."""
        if self._nodes is None:
            self._nodes = tuple(self._level(f"node{i}") for i in range(self._num_nodes))
        return self._nodes

    def _level(self, block: str) -> Level:
        level = self._columns.level(self.values, self._ndim, block)
        return level._replace(time_of_rows=TimeOfRows(level.time)) if self._shared else level


@frozen(eq=False)
class Program:
    """One sampler on one table.

    Attributes:
        sampler: The sampler part.
        columns: Level t, level s and plan coefficients of every step, in the order of the steps.
        levels: Level each step goes to, in the root table; the one below, where it lies between two.
        num_nodes: Number of further levels within each step.
        stochastic: Whether the sampler's steps add noise.
        uses_last: False if the argument ``last`` of the sampler's steps is False throughout.
    """

    sampler: Sampler
    columns: CoefficientTable
    levels: tuple[int, ...]
    num_nodes: int = 0
    stochastic: bool = field(init=False)
    uses_last: bool = field(init=False)
    _rows: dict[tuple[torch.device, torch.dtype], tuple[Row, ...]] = field(factory=dict, init=False, repr=False)

    @stochastic.default
    def _find_stochastic(self) -> bool:
        return self.sampler.stochastic

    @uses_last.default
    def _find_uses_last(self) -> bool:
        return isinstance(self.sampler, MultistageSampler) and self.sampler.uses_last

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.levels)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: Tensor | Row, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Take one step; a pure function of its arguments.

        Args:
            denoise: ``denoise(x, level) -> Prediction``.
            x: Data, (B, C, *S).
            state: The sampler's.
            row: One of `rows`, or a row of `columns` as a tensor (n,), or such a row for each example (B, n).
            noise: Standard normal of x's shape, or None if the sampler is deterministic.
            last: True on the step to level 0, if `uses_last`.
        """
        if not isinstance(row, Row):  # isinstance(row, Tensor) would be slow
            row = Row(self.columns, row, x.ndim, self.num_nodes)
        return self.sampler.step(denoise, x, state, row, noise, last)

    def run(
        self,
        denoise: Denoisers,
        x: Tensor,
        noise_fn: NoiseFn | None,
        step_fn: StepFn | None = None,
        after: TrajectoryPoint | None = None,
    ) -> Iterator[TrajectoryPoint]:
        """Run all steps from x and yield a `TrajectoryPoint` after each.

        Args:
            denoise: ``denoise(x, level) -> Prediction``, or one for each step.
            x: Data at the level the first step starts from.
            noise_fn: Called once a step; None only for a deterministic sampler.
            step_fn: `step_with_denoised`, or its compiled form.
            after: The point to go on from, in place of x; the noise of the steps before it is drawn once more.
        """
        step_fn = step_fn or step_with_denoised
        with torch.inference_mode(False), torch.no_grad():
            x, state = (ordinary(x), self.sampler.init(x)) if after is None else ordinary((after.x, after.state))
        done = 0 if after is None else after.step
        for i, (row, denoiser) in enumerate(self._each(denoise, x, noise_fn)):
            noise = self.noise(noise_fn)
            if i < done:
                continue
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # inside the step only, so that no mode leaks to the caller between yields
                x, state, x_start = step_fn(self, denoiser, x, state, row, noise, self.is_last(i))
            assert x_start is not None, "a step of a trajectory returns its estimate"
            yield TrajectoryPoint(i + 1, self.levels[i], x, x_start, state)

    def finish(
        self,
        denoise: Denoisers,
        x: Tensor,
        noise_fn: NoiseFn | None,
        advance: Callable[[int], None] | None = None,
        step_fn: StepFn | None = None,
        *,
        grad: bool = False,
    ) -> Tensor:
        """Run all steps from x and return the result, without storing intermediate points.

        Args:
            denoise, x, noise_fn: As in `run`.
            advance: Called with 1 after each step.
            step_fn: The compiled form of `take_step`; None calls the sampler's step.
            grad: Record the steps for autograd, if it is enabled.
        """
        sampler, uses_last, grad = self.sampler, self.uses_last, grad and torch.is_grad_enabled()
        draw = noise_fn if sampler.stochastic else None
        with torch.inference_mode(False), torch.set_grad_enabled(grad):  # guidance may differentiate
            x = ordinary(x)
            state = sampler.init(x)
            for i, (row, denoiser) in enumerate(self._each(denoise, x, noise_fn)):
                noise, last = None if draw is None else draw(), uses_last and self.is_last(i)
                if step_fn is None:
                    x, state = sampler.step(denoiser, x, state, row, noise, last)
                else:
                    x, state, _ = step_fn(self, denoiser, x, state, row, noise, last)
                if advance is not None:
                    advance(1)
        return x

    def rows(self, x: Tensor, noise_fn: NoiseFn | None) -> Sequence[Row]:
        """Return each step's row of `columns` on x's device; `OptionError` for a stochastic sampler without noise."""
        if self.stochastic and noise_fn is None:
            raise OptionError("this sampler adds noise, so it needs noise_fn")
        key = (x.device, x.dtype)
        if key in self._rows and type(x) is Tensor:
            return self._rows[key]
        with torch.inference_mode(False):  # a later call may use autograd
            plain = type(x) is Tensor  # rows on fake tensors are not cached
            matrix = self.columns.on(*key)
            rows = tuple(Row(self.columns, row, x.ndim, self.num_nodes, plain) for row in matrix.unbind())
        if plain:
            self._rows[key] = rows
        return rows

    def _each(self, denoise: Denoisers, x: Tensor, noise_fn: NoiseFn | None) -> Iterator[tuple[Row, Denoise]]:
        """Each step's row and denoiser."""
        each = denoise if isinstance(denoise, Sequence) else repeat(denoise)
        return zip(self.rows(x, noise_fn), each, strict=False)

    def noise(self, noise_fn: NoiseFn | None) -> Tensor | None:
        """Return the noise of the next step; None if the sampler is deterministic."""
        return noise_fn() if noise_fn is not None and self.stochastic else None

    def is_last(self, i: int) -> bool:
        """Return the argument ``last`` of a step: True on the step to level 0, if `uses_last`."""
        return self.uses_last and self.levels[i] == 0


StepFn = Callable[
    [Program, Denoise, Tensor, State, Tensor | Row, Tensor | None, bool], tuple[Tensor, State, Tensor | None]
]
"""``step_fn(program, denoise, x, state, row, noise, last)`` -> x, state, and the estimate of x_start or None."""


def take_step(
    program: Program, denoise: Denoise, x: Tensor, state: State, row: Tensor | Row, noise: Tensor | None, last: bool
) -> tuple[Tensor, State, Tensor | None]:
    """Take one step; see `Program.step`."""
    x, state = program.step(_call_of(denoise), x, state, row, noise, last)
    return x, state, None


def _call_of(denoise: Any) -> Denoise:
    """The ``__call__`` method of an object: torch before 2.7 makes a new graph for every callable object."""
    method: Denoise = denoise.__call__
    return method


def step_with_denoised(
    program: Program, denoise: Denoise, x: Tensor, state: State, row: Tensor | Row, noise: Tensor | None, last: bool
) -> tuple[Tensor, State, Tensor | None]:
    """Take one step and return the estimate of x_start it used as well; see `Program.step`."""
    recorder = _Recorder(_call_of(denoise))
    x, state = program.step(recorder, x, state, row, noise, last)
    return x, state, recorder.last.x_start


class _Recorder:
    """A denoiser that stores its last prediction."""

    last: Prediction

    def __init__(self, denoise: Denoise):
        self._denoise = denoise

    def __call__(self, x: Tensor, level: Level, *more: Any, **named: Any) -> Prediction:
        self.last = self._denoise(x, level, *more, **named)
        return self.last


class _WithPrevious:
    """A denoiser that gives the network its previous estimate of x_start, and stores each as the next one's."""

    def __init__(self, denoise: Any, previous: Tensor):
        self._denoise, self.previous = denoise, previous

    def __call__(self, x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        found: Prediction = self._denoise(x, level, to, previous=self.previous)
        self.previous = found.x_start
        return found


@frozen(eq=False)
class SelfConditioned(MultistageSampler):
    """A sampler whose state also holds the network's last estimate of x_start, zeros at first.

    Attributes:
        inner: The sampler.
    """

    inner: Sampler

    @property
    def stochastic(self) -> bool:
        """As the sampler."""
        return self.inner.stochastic

    @property
    def uses_last(self) -> bool:  # type: ignore[override]
        """As the sampler."""
        return isinstance(self.inner, MultistageSampler) and self.inner.uses_last

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """As the sampler."""
        return self.inner.plan(steps)

    def init(self, x: Tensor) -> State:
        """Return the sampler's state and no estimate."""
        return self.inner.init(x), torch.zeros_like(x)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Take the sampler's step, with each estimate given to the next call."""
        given = _WithPrevious(denoise, state[1])
        x, state = self.inner.step(given, x, state[0], row, noise, last)
        return x, (state, given.previous)


@computing("the steps of the sampler")
def sampling_program(parts: Composition, sampler: Sampler, table: ProcessTable, last: int = 0) -> Program:
    """Return the program from level T of a table in use down to level 0, or to level 1.

    Raises:
        OptionError: There is no step to level 1, or the sampler goes to clean data on its way.
    """
    route = route_of(sampler, table)
    if route is None:
        rows = np.arange(table.num_steps, last, -1)
        start, end = rows, rows - 1
    else:
        start, end = _check_route(parts.label("sampler"), route, table.num_steps).T
        start, end = (start, end) if last == 0 else (start[:-1], end[:-1])
    if last and not (len(end) and np.all(end >= last)):
        cause = "goes to clean data on its way" if len(end) else "has no step that ends at level 1"
        raise OptionError(
            f"{parts.label('sampler')} {cause} here", option="final", value="sigma_min", fix=[{"final": "zero"}]
        )
    return _program(parts, sampler, table, Steps(table.at(start), table.at(end)), start, end)


def route_of(sampler: Sampler, table: ProcessTable) -> Sequence[tuple[int, int]] | None:
    """Return the steps of a sampler that orders them in its own way; None for one after the other down to level 0."""
    return sampler.route(table.log_snr) if isinstance(sampler, RoutedSampler) else None


def nodes_of(sampler: Sampler, steps: Steps) -> F64 | None:
    """Return log_snr of a sampler's further evaluations within steps, (n, m); None if there are none."""
    return sampler.nodes(steps) if isinstance(sampler, MultistageSampler) else None


def _check_route(label: str, route: Sequence[tuple[int, int]], top: int) -> np.ndarray:
    """Return a route as an int64 array (n, 2), or raise `ProtocolError` if it does not lead from T to 0."""
    pairs = np.asarray(route, dtype=np.int64).reshape(-1, 2)
    down = len(pairs) and pairs[0, 0] == top and pairs[-1, 1] == 0 and np.all(pairs[:, 1] < pairs[:, 0])
    if not down or np.any(pairs[1:, 0] < pairs[:-1, 1]) or pairs.min() < 0 or pairs.max() > top:
        raise ProtocolError(f"the route of {label} is not one of downward steps from level {top} to level 0: {route!r}")
    return pairs


@computing("the steps of the sampler")
def restarting_program(parts: Composition, sampler: Sampler, table: ProcessTable, runs: Mapping[int, int]) -> Program:
    """Return the program of several runs down the levels, each planned as if sampling started at its top.

    Multistep plans use the estimates of earlier steps, and a run that starts in the middle has none.

    Args:
        runs: Start level -> end level of each run; their steps are concatenated in this order.
    """
    levels = level_coefficients(parts, table)
    pieces = []
    for top, bottom in runs.items():
        rows = np.arange(top, 0, -1)
        blocks = _blocks(parts, sampler, table, levels, Steps(table.at(rows), table.at(rows - 1)), rows, rows - 1)
        pieces.append({name: {n: c[: top - bottom] for n, c in block.items()} for name, block in blocks.items()})
    joined = {
        name: {n: np.concatenate([piece[name][n] for piece in pieces]) for n in block}
        for name, block in pieces[0].items()
    }
    to_rows = np.concatenate([np.arange(top, bottom, -1) - 1 for top, bottom in runs.items()])
    return _program_of(parts, sampler, table, joined, to_rows)


@computing("the steps of the sampler")
def encoding_program(
    parts: Composition, sampler: Sampler, table: ProcessTable, past_end: bool, time_of: str = "start"
) -> Program:
    """Return the program from level 1 of a table in use up to level T.

    Args:
        parts: The composition.
        sampler: A deterministic sampler.
        table: The table in use.
        past_end: Add a step from T to a level without signal, as improved-diffusion does.
        time_of: Which end of a step gives the network its time, "start" or "end".
    """
    rows = np.arange(1, table.num_steps + (1 if past_end else 0))
    t = table.at(rows)
    s = table.at(rows + 1) if not past_end else _beyond(table)
    target = np.minimum(rows + 1, table.num_steps)
    levels = level_coefficients(parts, table)
    blocks = _blocks(parts, sampler, table, levels, Steps(t, s), rows, target)
    if time_of == "end":
        blocks["t"] = {**blocks["t"], "time": levels["time"][target]}
    return _program_of(parts, sampler, table, blocks, target)


@computing("the steps of the sampler")
def still_program(parts: Composition, sampler: Sampler, table: ProcessTable) -> Program:
    """Return the program of steps from each level of a table in use to itself, for checks of samplers."""
    rows = np.arange(table.num_steps, 0, -1)
    return _program(parts, sampler, table, Steps(table.at(rows), table.at(rows)), rows, rows)


def _beyond(table: ProcessTable) -> Coefs:
    alpha, sigma, log_snr = table.at(slice(2, None))
    return Coefs(np.append(alpha, 0.0), np.append(sigma, table.total_std[-1]), np.append(log_snr, -np.inf))


def _program(
    parts: Composition,
    sampler: Sampler,
    table: ProcessTable,
    steps: Steps,
    from_rows: np.ndarray,
    to_rows: np.ndarray,
) -> Program:
    blocks = _blocks(parts, sampler, table, level_coefficients(parts, table), steps, from_rows, to_rows)
    return _program_of(parts, sampler, table, blocks, to_rows)


def _program_of(
    parts: Composition,
    sampler: Sampler,
    table: ProcessTable,
    blocks: Mapping[str, NamedColumns],
    to_rows: np.ndarray,
) -> Program:
    if parts.self_conditioned:
        sampler = SelfConditioned(sampler)
    num_nodes = len(blocks) - len(("t", "s", "coef"))
    return Program(sampler, CoefficientTable(blocks), tuple(int(k) for k in table.index[to_rows]), num_nodes)


def _blocks(
    parts: Composition,
    sampler: Sampler,
    table: ProcessTable,
    levels: NamedColumns,
    steps: Steps,
    from_rows: np.ndarray,
    to_rows: np.ndarray,
) -> dict[str, NamedColumns]:
    """The columns that the steps of one plan read, block by block.

    Args:
        table, levels: The table in use, and its `level_coefficients`.
        steps, from_rows, to_rows: The steps, and their ends as rows of the table.
    """
    log_snr = nodes_of(sampler, steps)
    start = {name: c[from_rows] for name, c in levels.items()}
    nodes, coefs = ([], ()) if log_snr is None else node_coefficients(parts, table, steps, log_snr, start)
    steps = Steps(steps.t, steps.s, coefs)
    plan = {name: np.broadcast_to(c, len(from_rows)) for name, c in sampler.plan(steps).items()}
    _check_plan(parts.label("sampler"), plan)
    blocks: dict[str, NamedColumns] = {"t": start, "s": {name: c[to_rows] for name, c in levels.items()}}
    return blocks | {f"node{i}": node for i, node in enumerate(nodes)} | {"coef": plan}


def _check_plan(label: str, plan: Mapping[str, F64]) -> None:
    for name, column in plan.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if bad.size:
            raise ProtocolError(f"the plan of {label} is not finite in column {name!r} at step {bad[0] + 1}")
