"""Data of which the flow map is known, levels of two paths with any mean, and expectations over the data given x_t."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffkit_flow import Flow
from torch import Tensor
from torch.func import jvp

from diffkit.parts.means.eps import Eps
from diffkit.parts.means.v import V
from diffkit.parts.means.x_start import XStart
from diffkit.protocols import Level, MeanParameterization
from diffkit.table import Coefs
from diffkit.testing import SeparableMixtureOracle

DATA = SeparableMixtureOracle([0.4, 0.6], [-0.9, 0.8], [0.35, 0.25])
MEANS: dict[str, MeanParameterization] = {"flow": Flow(), "v": V(), "eps": Eps(), "x_start": XStart()}
PATHS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "linear": lambda u: (1 - u, u),
    "vp": lambda u: (torch.cos(u * torch.pi / 2), torch.sin(u * torch.pi / 2)),
}
"""Path -> alpha and sigma at a time in [0, 1]."""


class Path:
    """Levels of a path with a mean, and their derivatives, for times (B,) float64 and data (B, 1)."""

    def __init__(self, path: str, mean: str):
        self.scales, self.mean = PATHS[path], MEANS[mean]

    def __call__(self, time: Tensor) -> Level:
        return Level(*(column[:, None] for column in self._columns(time)[:-1]), time=time, coefficients=None)

    def rate(self, time: Tensor) -> Level:
        """The derivative by time."""
        _, rates = jvp(self._columns, (time,), (torch.ones_like(time),))
        return Level(*(column[:, None] for column in rates[:-1]), time=rates[-1], coefficients=None)

    def _columns(self, time: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma = self.scales(time)
        at = Coefs(alpha, sigma, 2 * torch.log(alpha / sigma))
        return (*at, *self.mean.scalings(at, None), time)


def output(average: Tensor, x: Tensor, t: Level) -> Tensor:
    """The network's output that means this estimate of clean data."""
    return (average - t.c_skip * x) / t.c_out


def posterior(x: Tensor, t: Level, nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Values of x_start given x_t, (N, B, 1), and their weights, which integrate smooth functions exactly."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    found, shares = [], []
    variance = t.alpha**2 * DATA.stds**2 + t.sigma**2
    away = x - t.alpha * DATA.means
    share = torch.softmax(torch.log(DATA.weights) - 0.5 * (away**2 / variance + torch.log(variance)), 1)
    for k in range(len(DATA.means)):
        mean = DATA.means[k] + t.alpha * DATA.stds[k] ** 2 / variance[:, k, None] * away[:, k, None]
        std = DATA.stds[k] * t.sigma / variance[:, k, None].sqrt()
        found.append(mean + std * points.view(-1, 1, 1))
        shares.append(share[:, k, None] * weights.view(-1, 1, 1))
    return torch.cat(found), torch.cat(shares)


def expected(value: Callable[[Tensor], Tensor], x: Tensor, t: Level) -> Tensor:
    """E[value(x_start) | x_t = x], (B, 1)."""
    x_start, weight = posterior(x, t)
    return sum((w * value(point) for point, w in zip(x_start, weight, strict=True)), torch.zeros_like(x))


def grid(*times: float) -> tuple[Tensor, ...]:
    """Data and as many times, (B,), each in every combination with five points of data."""
    x = torch.tensor([-1.6, -0.5, 0.0, 0.4, 1.3], dtype=torch.float64)
    return x[:, None], *(torch.full((5,), time, dtype=torch.float64) for time in times)


def slopes(path: Path, average: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, t: Tensor, s: Tensor):
    """Mean channels of an estimate ``average(x, t, s)``, and their derivatives by time and by x."""

    def out(x: Tensor, t: Tensor) -> Tensor:
        return output(average(x, t, s), x, path(t))

    still = torch.zeros_like(x), torch.zeros_like(t)
    found, by_time = jvp(out, (x, t), (still[0], torch.ones_like(t)))
    _, by_x = jvp(out, (x, t), (torch.ones_like(x), still[1]))
    return found, by_time, by_x
