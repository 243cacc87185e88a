"""What any run of a solver makes of data that is known exactly: distributions, distances, and orders of convergence."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.testing._check import LawError, Where
from diffkit.testing._close import require
from diffkit.testing.oracles import DiracOracle, GaussianOracle, MixtureOracle

POINT = DiracOracle([0.7, -0.4])
NORMAL = GaussianOracle(mean=[0.7, -0.4], std=[0.5, 1.6])
"""Neither is centred, and the widths straddle 1, where many mistakes cancel."""
PICTURE = DiracOracle(torch.linspace(-0.5, 0.9, 12, dtype=torch.float64).view(2, 2, 3))
"""One picture: no two elements are alike, and neither the channels nor their sides have a mean of 0."""
MIXTURE = MixtureOracle(weights=[0.4, 0.6], means=[[-0.9, 0.5], [0.8, -0.3]], std=0.35)
"""Its denoiser is not linear: on normal data alone some methods converge faster than they do."""
ORACLES = (NORMAL, MIXTURE)

SLACK = 0.2
"""How much of the fitted slope may be missing from the declared order, as finite numbers of steps show it."""
SMALL = 0.05
"""Error that a solver must reach at the finest count, in standard deviations."""


class ExactRun(Protocol):
    """One run of a solver, to repeat with exact denoisers."""

    @property
    def where(self) -> Where:
        """Return the place named in a result."""

    @property
    def points(self) -> Sequence[tuple[float, float]]:
        """Return alpha and sigma where each step starts, then where the last one goes."""

    @property
    def rounding(self) -> float:
        """Return what twice a change may differ from twice its result by, relative to x."""

    def draws(self, steps: int) -> int:
        """Return how many tensors of noise some steps use."""

    def run_exact(self, oracle: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """Yield x after every step, or at the end only, with an exact denoiser and the noise given."""


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

    @classmethod
    def of_rows(cls, x: Tensor) -> StepDistribution:
        """Return the distribution that the rows of a batch stand for, as `propagate_normal` makes them."""
        shares = x[1:-1] - x[0]
        return cls(x[0], shares.square().sum(0).sqrt(), shares)

    @property
    def covariance(self) -> Tensor:
        """Return the covariance of all pairs of elements, (D, D)."""
        flat = self.shares.flatten(1)
        return flat.T @ flat


def propagate_normal(
    run: ExactRun, oracle: Any, start: GaussianOracle, steps: int | None = None
) -> list[StepDistribution]:
    """Return exactly what the steps make of normal data, given that they are affine in x and noise.

    One row of the batch starts at the mean. For each element, one row starts a standard deviation away from it, and
    one for each draw of noise receives unit noise there; the final difference of each row from the first is that
    source's share. A last row receives all of them twice.

    Args:
        run: A solver on a grid.
        oracle: Exact denoiser, affine in x.
        start: Distribution at the first level.
        steps: How many steps; all by default.
    Raises:
        LawError: The steps are not affine, so that the result would be meaningless.
    """
    steps = len(run.points) - 1 if steps is None else steps
    x, noises = _sources(start, run.draws(steps))
    found = []
    for i, after in zip(range(steps), run.run_exact(oracle, x, noises), strict=False):
        spread = StepDistribution.of_rows(after)
        _require_affine(after, spread.shares, run.rounding, attrs.evolve(run.where, detail=f"step {i + 1}"))
        found.append(spread)
    return found


def _sources(start: GaussianOracle, draws: int) -> tuple[Tensor, list[Tensor]]:
    """Return a batch with a row for each source of chance, and the noise of each draw."""
    moves = torch.eye(start.mean.numel(), dtype=start.mean.dtype).view(-1, *start.mean.shape)
    own = [slice(1 + len(moves) * i, 1 + len(moves) * (i + 1)) for i in range(draws + 1)]
    x = start.mean.repeat(own[-1].stop + 1, *[1] * start.mean.ndim)
    x[own[0]] += start.std * moves
    x[-1] += 2 * start.std * moves.sum(0)
    noises = []
    for rows in own[1:]:
        noise = torch.zeros_like(x)
        noise[rows] = moves
        noise[-1] = 2 * moves.sum(0)
        noises.append(noise)
    return x, noises


def _require_affine(after: Tensor, shares: Tensor, rounding: float, where: Where) -> None:
    gap = (after[-1] - after[0] - 2 * shares.sum(0)).abs().max()
    size = 1 + after.abs().max()
    if not gap <= rounding * size:
        raise LawError(
            "a step that is affine in x and noise when the denoiser is",
            f"twice the change gives {float(gap):.3g} more than twice the result",
            where,
            "clipping, a square of x, or a branch on its size inside the step",
        )


def distribution_error(run: ExactRun, steps: int) -> float:
    """Return the largest error of mean or standard deviation after some steps, in exact standard deviations."""
    found = propagate_normal(run, NORMAL, NORMAL.at(*run.points[0]), steps)[-1]
    return spread_error(found, NORMAL.at(*run.points[steps]))


def spread_error(found: StepDistribution, exact: GaussianOracle) -> float:
    """Return the largest error of mean or standard deviation, in exact standard deviations."""
    worst = torch.maximum((found.mean - exact.mean).abs(), (found.std - exact.std).abs()) / exact.std
    return float(worst.max())


def pointwise_error(run: ExactRun, steps: int, oracle: Any = NORMAL) -> float:
    """Return the largest distance from the exact ODE solution after some steps, in units of the scale of x_t."""
    t, s = run.points[0], run.points[steps]
    x = t[0] * start_points(t[1] / t[0])
    for _, after in zip(range(steps), run.run_exact(oracle, x), strict=False):
        found = after
    exact = s[0] * _solution(oracle, t[1] / t[0], s[1] / s[0])
    return float((found - exact).abs().max()) / math.hypot(*s)


def start_points(rho: float) -> Tensor:
    """Return x / alpha of five points from one tail to the other, where sigma / alpha is rho."""
    spread = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)[:, None]
    return spread * math.hypot(1.0, rho) * torch.tensor([1.0, -0.7], dtype=torch.float64)


@functools.lru_cache
def _known_solution(which: int, t: float, s: float) -> Tensor:
    return ORACLES[which].flow(start_points(t), (1.0, t), (1.0, s))


def _solution(oracle: Any, t: float, s: float) -> Tensor:
    """Return x / alpha to which the ODE takes the points of `start_points`; in rho it is the same on every path."""
    return _known_solution(ORACLES.index(oracle), float(f"{t:.13g}"), float(f"{s:.13g}"))


def fitted_order(counts: Sequence[int], errors: Sequence[float], floor: float = 1e-11) -> float:
    """Return the slope of log error over log steps, fitted to the three finest above rounding; inf if none."""
    usable = [(n, e) for n, e in zip(counts, errors, strict=True) if e > floor][-3:]
    if len(usable) < 2:
        return float("inf")
    steps, found = np.log([n for n, _ in usable]), np.log([e for _, e in usable])
    return float(-np.polyfit(steps, found, 1)[0])


def require_order(
    counts: Sequence[int], errors: Sequence[float], order: float, where: Where, *, floor: float = 1e-11
) -> float:
    """Raise `LawError` unless errors fall at an order and end small; return the order measured.

    Args:
        counts: Numbers of steps.
        errors: Error at each.
        order: The least slope.
        where: Where.
        floor: Errors that are rounding.
    """
    shown = f"errors {', '.join(f'{e:.2g}' for e in errors)} at {', '.join(map(str, counts))} steps"
    require(all(map(math.isfinite, errors)), "finite errors", shown, where)
    measured = fitted_order(counts, errors, floor)
    require(measured >= order, f"an order of at least {order:g}", f"order {measured:.2f} ({shown})", where)
    require(errors[-1] < SMALL, f"an error below {SMALL} at {counts[-1]} steps", f"{errors[-1]:.3g}", where)
    return measured
