"""Whether an alarm is real: by a reference that shares nothing with the laws but the model."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from benchmarks.court.entry import Entry
from benchmarks.court.rules import CHANCE, DRAWN, FLOOR, OWN_COUNTS, OWN_GRID_SLACK, REFERENCE_STEPS
from diffkit.testing import ExactModel, GaussianOracle, MixtureOracle, solver_times

NORMAL = GaussianOracle(mean=[0.7, -0.4], std=[0.5, 1.6])
MIXTURE = MixtureOracle([0.4, 0.6], [[-0.9, 0.5], [0.8, -0.3]], 0.35)
MODELS = (NORMAL, MIXTURE)
SMALL, SLACK = 0.05, 0.2


def confirmed(entry: Entry, failed: set[str], stochastic: bool) -> bool:
    """Return whether a fine reference, or samples drawn by the library itself, show what a law says.

    What is not finite, or mixes the rows of a batch, is seen directly. A lag alone is no alarm: it has to show in what
    the solver returns.
    """
    if failed & {"finite_to_the_end", "rows_on_their_own"}:
        return True
    return off_by_samples(entry) if stochastic else off_the_solution(entry)


def off_the_solution(entry: Entry) -> bool:
    """Return whether the distance from the reference is large, or falls at less than the declared order.

    It is taken at finer grids than the laws', where a solver has any.
    """
    own, finest = entry.counts == OWN_COUNTS, entry.counts[-1]
    counts = entry.counts[-2:] if own else (2 * finest, 4 * finest)
    least = entry.order - (OWN_GRID_SLACK if own else SLACK)
    for oracle in MODELS:
        (few, coarse), (many, fine) = (_distance(entry, oracle, n) for n in counts)
        if not fine < SMALL:
            return True
        if fine > FLOOR[entry.precision] and math.log(coarse / fine) / math.log(many / few) < least:
            return True
    return False


def _times(entry: Entry, n: int) -> list[float]:
    return entry.grid(n) if entry.grid else solver_times(entry.path, n)


def _distance(entry: Entry, oracle: GaussianOracle | MixtureOracle, n: int) -> tuple[int, float]:
    """Return how many steps there were, and the root mean square distance from the reference."""
    times = _times(entry, n)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (entry.path.at(t) for t in (times[0], times[-1]))
    begin, end = (float(f"{math.log(sigma / alpha):.13g}") for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    with torch.no_grad():
        found = entry.solve(ExactModel(oracle, entry.path), alpha_t * _start(begin), times)
    exact = alpha_s * _solution(MODELS.index(oracle), begin, end)
    return len(times) - 1, float((found - exact).square().mean().sqrt() / math.hypot(alpha_s, sigma_s))


def _start(begin: float) -> Tensor:
    """Return y = x / alpha of seven points where log(sigma / alpha) is ``begin``."""
    spread = torch.linspace(-1.2, 1.4, 7, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.6], dtype=torch.float64)
    return spread * math.hypot(1.0, math.exp(begin))


@functools.cache
def _solution(which: int, begin: float, end: float) -> Tensor:
    """Return y at the end: integrate dy / d log rho = y - E[x_start | y] by the classical method of Runge and Kutta.

    In rho = sigma / alpha the solution is the same on every path, so solvers share it.
    """
    oracle, y = MODELS[which], _start(begin)

    def slope(y: Tensor, at: float) -> Tensor:
        return y - oracle.x_start(y, 1.0, math.exp(at))

    h = (end - begin) / REFERENCE_STEPS
    for i in range(REFERENCE_STEPS):
        at = begin + i * h
        a = slope(y, at)
        b = slope(y + h / 2 * a, at + h / 2)
        c = slope(y + h / 2 * b, at + h / 2)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, at + h))
    return y


def off_by_samples(entry: Entry) -> bool:
    """Return whether mean or spread of samples, drawn with the library's own random numbers, are off at fine steps."""
    times = _times(entry, entry.counts[-1])
    start, exact = (NORMAL.at(*entry.path.at(t)) for t in (times[0], times[-1]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x = start.sample(torch.randn(DRAWN, 2, dtype=torch.float64))
        end = entry.solve(ExactModel(NORMAL, entry.path), x, times).double()
    of_mean = (end.mean(0) - exact.mean).abs() / exact.std
    of_spread = (end.std(0) / exact.std - 1).abs()
    chance = CHANCE / math.sqrt(DRAWN)
    return not (float(of_mean.max()) < SMALL + chance and float(of_spread.max()) < SMALL + chance)
