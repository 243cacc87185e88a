"""Laws of any solver, diffkit's or not: what it makes of exact models on a path of time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffkit.errors import OptionError
from diffkit.testing._check import CheckResult, LawError, NotApplicableError, Where, check, checks_of
from diffkit.testing._close import require, require_close
from diffkit.testing._exact_runs import (
    MIXTURE,
    NORMAL,
    POINT,
    SLACK,
    SMALL,
    StepDistribution,
    fitted_order,
    pointwise_error,
    propagate_normal,
    require_order,
    spread_error,
)
from diffkit.testing.exact_model import ExactModel, TimePath, path_named

Step = Callable[[Tensor, Any, Any], Tensor]
Solve = Callable[[ExactModel, Tensor, Sequence[float]], Tensor]
Grid = Callable[[int], Sequence[float]]

_TOP = 4.0  # of log_snr: the middle of a path, where coefficients are of moderate size
_WHOLE = 9.0  # of log_snr: almost only noise
_COUNTS = (40, 80, 160)
_FEW = (1, 2, 3, 20)
_START_UP = "its first steps are of a lower order, which shows until they are short: start with shorter steps"


@frozen(eq=False, slots=False)
class SolverCase:
    """A solver and what it is held to; see `check_solver`."""

    solve: Solve
    path: TimePath
    order: int
    label: str
    counts: tuple[int, ...]
    grids: Mapping[str, Grid]
    to_clean: Grid
    floor: float
    own_grid: bool = field(default=False)

    def __repr__(self) -> str:
        """Return the label, as it is named in results."""
        return self.label

    def runs(self, grid: str) -> list[SolverRun]:
        """Return a run for each number of steps."""
        return self._runs[grid]

    @functools.cached_property
    def _runs(self) -> dict[str, list[SolverRun]]:
        return {grid: [self.run(of(n), grid, self.stochastic) for n in self.counts] for grid, of in self.grids.items()}

    @functools.cached_property
    def _first(self) -> SolverRun:
        return self.run(next(iter(self.grids.values()))(self.counts[0]), "")

    def run(self, times: Sequence[float], grid: str, noise: bool = True) -> SolverRun:
        """Return a run through some times."""
        times = [float(t) for t in times]
        where = Where(self.path.label, len(times) - 1, detail=grid)
        return SolverRun(self.solve, self.path, times, where, max(1e-8, 10 * self.floor), noise)

    @functools.cached_property
    def stochastic(self) -> bool:
        """Return whether noise changes what it returns."""
        draws = self._first.draw_count
        x = torch.ones(2, 2, dtype=torch.float64) * math.hypot(*self._first.points[0])
        ends = [self._first.end(NORMAL, x, [torch.full_like(x, value)] * draws) for value in (0.0, 1.0) if draws]
        return bool(draws) and not torch.equal(*ends)


@frozen(eq=False, slots=False)
class SolverRun:
    """One run of a solver from the first of some times to the last, to repeat with exact models.

    Attributes:
        solve, path, times: What is run.
        where: Named in results.
        rounding: As in `ExactRun`.
        noise: Whether what it draws matters, and so is replaced, which costs a third of the time.
    """

    solve: Solve
    path: TimePath
    times: Sequence[float]
    where: Where
    rounding: float = 1e-8
    noise: bool = True

    @functools.cached_property
    def points(self) -> list[tuple[float, float]]:
        """Return alpha and sigma at every time."""
        return [self.path.at(t) for t in self.times]

    @functools.cached_property
    def draw_count(self) -> int:
        """Return how many tensors of noise the run draws."""
        if not self.noise:
            return 0
        x = torch.zeros(2, 2, dtype=torch.float64)
        with torch.no_grad(), _Noise(x) as noise:
            self.solve(ExactModel(NORMAL, self.path), x, self.times)
        count: int = noise.count
        return count

    @functools.cached_property
    def normal_end(self) -> StepDistribution:
        """Return what it makes of normal data."""
        return propagate_normal(self, NORMAL, NORMAL.at(*self.points[0]))[-1]

    def error(self, data: Any, stochastic: bool) -> float:
        """Return the distance of its end from the exact one, or that of the distribution of normal data."""
        if stochastic:
            return spread_error(self.normal_end, NORMAL.at(*self.points[-1]))
        return pointwise_error(self, len(self.times) - 1, data)

    def draws(self, steps: int) -> int:
        """Return how many tensors of noise the run draws."""
        return self.draw_count

    def run_exact(self, oracle: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """Yield x at the last time."""
        yield self.end(oracle, x, noises)

    def end(
        self, oracle: Any, x: Tensor, noises: Sequence[Tensor] = (), on_call: Callable[..., None] | None = None
    ) -> Tensor:
        """Return x at the last time, with the noise given."""
        with torch.no_grad(), _Noise(x, noises) if self.noise else contextlib.nullcontext():
            return self.solve(ExactModel(oracle, self.path, on_call), x.clone(), self.times)


class _Noise(TorchFunctionMode):
    """Gives a solver the noise of the check wherever it draws standard normal numbers of the shape of x."""

    def __init__(self, x: Tensor, noises: Sequence[Tensor] = ()):
        super().__init__()
        self.x, self.noises = x, noises
        self.count: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like, torch.normal, Tensor.normal_):
            return out
        if out.shape[:1] != self.x.shape[:1] or out.numel() != self.x.numel():
            return out
        given = self.noises[self.count] if self.count < len(self.noises) else torch.zeros_like(self.x)
        self.count += 1
        noise = given.reshape(out.shape).to(out)
        if func is torch.normal and len(args) > 1:
            return args[0] + args[1] * noise
        return out.copy_(noise) if func is Tensor.normal_ else noise


def step_solver(start: Callable[[ExactModel, Sequence[float]], Step]) -> Solve:
    """Return ``solve(model, x, times)`` made of steps; see `check_solver`.

    Args:
        start: Called once for each run, with the model and all times, descending in noise; returns ``step(x, t, s)``,
            which returns x at s. What a multistep method remembers is best held by what it returns.
    """

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        step = start(model, times)
        for t, s in pairwise(times):
            x = step(x, t, s)
        return x

    return solve


def solver_times(
    path: str | TimePath, num_steps: int, *, uneven: bool = False, to_clean: bool = False, fine_start: bool = False
) -> list[float]:
    """Return times of a path to check solvers on, from the noisier to the cleaner end.

    Args:
        path: "vp", "ve", "linear", or your own.
        num_steps: How many steps.
        uneven: Every second step is twice as wide in log_snr; otherwise all are equal.
        to_clean: From log_snr -9 to clean data; otherwise from -4 to 4.
        fine_start: The first step is divided, so that what a multistep method does at first does not show.
    """
    path = path_named(path)
    gaps = np.where(np.arange(num_steps) % 2, 2.0, 1.0) if uneven else np.ones(num_steps)
    places = np.concatenate([[0.0], np.cumsum(gaps) / gaps.sum()])
    if fine_start:
        places = np.concatenate([[0.0], places[1] * 2.0 ** -np.arange(12.0, 0, -1), places[1:]])
    top = _WHOLE if to_clean else _TOP
    times = path.time_at(torch.from_numpy(2 * top * places - top)).tolist()
    return [*times[:-1], path.clean] if to_clean else times


def check_solver(
    solve: Solve,
    *,
    order: int = 1,
    path: str | TimePath = "linear",
    grid: Grid | None = None,
    to_clean: Grid | None = None,
    counts: Sequence[int] = _COUNTS,
    floor: float = 1e-11,
    label: str = "",
) -> list[CheckResult]:
    """Run the laws of solvers on any solver and return the results; a failure raises nothing.

        def start(model, times):
            return lambda x, t, s: x + (s - t) * model.velocity(x, t)

        require_laws(check_solver(step_solver(start), path="linear", order=1))

    The model is exact, so that what is wrong is wrong in the solver. It has the methods x_start, eps, v, velocity,
    score, alpha and sigma of `ExactModel`. Noise may be drawn with `torch.randn_like` and its like: the kit
    replaces it, and follows each draw to the end, so distributions are worked out, not estimated.

    Args:
        solve: ``solve(model, x, times)`` returns x at the last of the times, (B, C); `step_solver` makes one of steps.
        order: Order of convergence that is declared.
        path: "vp", "ve", "linear", or your own.
        grid: Times of n steps, where the solver decides on them; the kit's even and uneven ones by default.
        to_clean: Times of n steps that end at clean data, likewise.
        counts: Numbers of steps over which the order is fitted.
        floor: Errors that are rounding; for solvers with tables in float32 about 1e-5.
        label: The solver's name in results.
    """
    if not callable(solve):
        raise OptionError(f"solve={solve!r} is not callable; use solve=step_solver(start)")
    path = path_named(path)
    grids: dict[str, Grid] = {"its own grid": grid} if grid else {}
    for name, uneven in (("even steps", False), ("every second step twice as wide", True)):
        if grid is None:
            grids[name] = functools.partial(solver_times, path, uneven=uneven)
    whole = to_clean or grid or functools.partial(solver_times, path, to_clean=True)
    label = label or getattr(solve, "__qualname__", type(solve).__name__)
    case = SolverCase(solve, path, order, label, tuple(counts), grids, whole, floor, grid is not None)
    return [each.result(case) for each in checks_of("solver")]


def require_laws(results: Sequence[CheckResult]) -> None:
    """Raise `AssertionError` with a review of every law that is broken, or return None."""
    __tracebackhide__ = True
    failed = [str(result) for result in results if not result.ok]
    if failed:
        raise AssertionError("\n".join(failed))


@check("solver")
def finite_to_the_end(case: SolverCase) -> None:
    """In 1, 2, 3 and 20 steps a solver ends at finite data of the shape of x, down to clean data.

    Usually: 0/0 or a log of 0 on the last step, a variance that is not defined at one of the levels, or a history that
    the first steps do not have.
    """
    for steps in _FEW:
        run = case.run(case.to_clean(steps), "to the last time of the grid")
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2) * math.hypot(*run.points[0])
        end = run.end(NORMAL, x)
        require(end.shape == x.shape, "the shape of x", tuple(end.shape), run.where)
        require(bool(end.isfinite().all()), "finite x", "inf or NaN", run.where)


@check("solver")
def order_as_declared(case: SolverCase) -> str:
    """A solver's error falls with the number of steps at the declared order, on even and on uneven grids.

    A deterministic solver is compared with the exact solution for normal data and a mixture, a stochastic one by mean
    and standard deviation of normal data (weak order).
    Usually: a coefficient at the wrong end of the step, a history weighted for equal steps on unequal ones, levels that
    are not those of the grid, or a method of lower order than its name says.
    """
    measured = []
    for grid in case.grids:
        for data in (NORMAL,) if case.stochastic else (NORMAL, MIXTURE):
            errors = [run.error(data, case.stochastic) for run in case.runs(grid)]
            where = Where(case.path.label, case.counts[-1], detail=f"{_NAMES[data]}, {grid}")
            try:
                measured.append(require_order(case.counts, errors, case.order - SLACK, where, floor=case.floor))
            except LawError as error:
                if _only_the_start(case, data):
                    error.cause = _START_UP
                raise
    return f"order {case.order} declared, {min(measured):.2f} measured"


_NAMES = {NORMAL: "normal data", MIXTURE: "a mixture of two normals"}


def _only_the_start(case: SolverCase, data: Any) -> bool:
    """Return whether a deterministic solver has its order once its first steps are short."""
    if case.stochastic or case.own_grid:
        return False
    times = [solver_times(case.path, n, fine_start=True) for n in case.counts]
    runs = [case.run(each, "fine start") for each in times]
    errors = [run.error(data, stochastic=False) for run in runs]
    return fitted_order(case.counts, errors, case.floor) >= case.order - SLACK


@check("solver")
def keeps_the_marginals(case: SolverCase) -> str:
    """A stochastic solver ends at the mean and spread of the path, with independent noise in each element.

    Usually: noise without the drift that pays for it, a variance where a standard deviation belongs, a factor 2 in the
    diffusion, or a network that is evaluated at another level than x has.
    """
    if not case.stochastic:
        raise NotApplicableError("it is deterministic")
    worst = 0.0
    for grid in case.grids:
        run = case.runs(grid)[-1]
        exact = NORMAL.at(*run.points[-1])
        found = run.normal_end
        for name, got, want in (("mean", found.mean, exact.mean), ("spread", found.std, exact.std)):
            require_close(got, want, SMALL, name, run.where, scale=exact.std)
            worst = max(worst, float(((got - want) / exact.std).abs().max()))
        between = found.covariance / (exact.std[:, None] * exact.std)
        shared = float((between - between.diag().diag()).abs().max())
        require(shared < SMALL, "independent elements", f"a correlation of {shared:.3g}", run.where)
    return f"within {worst:.1e} of a standard deviation at {case.counts[-1]} steps"


@check("solver")
def rows_on_their_own(case: SolverCase) -> None:
    """A solver's result for an example depends on nothing else in the batch.

    Usually: a mean, norm or error estimate over the batch.
    """
    for grid in case.grids:
        run = case.runs(grid)[0]
        scale = math.hypot(*run.points[0])
        generator = torch.Generator().manual_seed(1)
        x, *noises = (
            torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(1 + run.draws(case.counts[0]))
        )
        joint = run.end(NORMAL, x * scale, noises)
        for i in range(3):
            alone = run.end(NORMAL, x[i : i + 1] * scale, [noise[i : i + 1] for noise in noises])
            require_close(joint[i : i + 1], alone, max(1e-9, case.floor), "x", run.where, scale=1 + alone.abs().max())


@check("solver")
def begins_where_the_last_ended(case: SolverCase) -> str:
    """With fine steps, the network is evaluated at the level that x has, and x ends at the last time of the grid.

    Data is at one point, so the noise in x is known. In units of log(sigma / alpha).
    Usually: a step that goes to another level than the next one starts from, times and noise levels that part ways, or
    noise that is added without telling the network.
    """
    worst = 0.0
    for grid in case.grids:
        run = case.runs(grid)[-1]
        lags = [0.0]
        end = propagate_normal(_WatchedRun(run, lags), POINT, POINT.at(*run.points[0]))[-1]
        alpha, sigma = run.points[-1]
        lags.append(_lag(end, torch.tensor(alpha), torch.tensor(sigma)))
        worst = max(worst, *lags)
        require(worst < SMALL, f"a lag below {SMALL}", f"{worst:.3g} in log(sigma / alpha)", run.where)
    return f"within {worst:.1e} in log(sigma / alpha) at {case.counts[-1]} steps"


@frozen(eq=False)
class _WatchedRun:
    """A run that notes at every evaluation how far the level of x is from that of the network."""

    run: SolverRun
    lags: list[float]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def run_exact(self, oracle: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        def note(x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
            spread = StepDistribution.of_rows(x.double())
            self.lags.append(_lag(spread, alpha.flatten()[0], sigma.flatten()[0]))

        yield self.run.end(oracle, x, noises, note)


def _lag(spread: StepDistribution, alpha: Tensor, sigma: Tensor) -> float:
    ratio = (spread.std * POINT.x_start_value / spread.mean).reshape(-1)
    lag = (ratio.log() - (sigma / alpha).log()).abs().max()
    return float(lag.nan_to_num(nan=math.inf))
