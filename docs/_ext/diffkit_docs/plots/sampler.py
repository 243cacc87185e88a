"""A sampler: how fast its samples reach an exact mixture of normals, by calls of the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffkit.errors import DiffkitError
from diffkit.registry import registry
from diffkit_docs.figures import BLUE, FAINT, GREEN, GREY, ORANGE, Panel
from diffkit_docs.plots._shared import mixture, network, system

_COUNTS = (4, 6, 9, 14, 20, 30, 45, 70, 100)
_DRAWS = 2048
_FEW = 10
"""Calls of the network at which the samples themselves are shown."""
_BESIDE = (("ddim", GREY), ("dpmpp_2m", GREEN))
"""Samplers that are drawn beside each, to compare."""
DATA = mixture([-1.0, 0.2, 1.4], [0.3, 0.5, 0.2], 0.15)


def panels(name: str, part: Any) -> list[Panel]:
    """Return the distance from the mixture by calls of the network, and the samples after a few calls."""

    def convergence(axes: Axes) -> None:
        for other, color in _BESIDE:
            if other != name:
                calls, errors = errors_of(registry("sampler").create(other))
                axes.plot(calls, errors, color=color, lw=1, ls="--", label=f"'{other}'")
        calls, errors = errors_of(part)
        axes.plot(calls, errors, "o-", color=BLUE, label=f"'{name}'")
        if part.stochastic:
            axes.axhline(_distance(_independent()), color=ORANGE, lw=1, ls=":", label="independent exact draws")
        axes.set(xscale="log", yscale="log")

    def samples(axes: Axes) -> None:
        steps = _steps_for(part, _FEW)
        drawn, calls = run(part, steps)
        grid = np.linspace(-2, 2.2, 300)
        exact = DATA.log_prob(torch.from_numpy(grid)[:, None, None]).exp().numpy()
        axes.hist(drawn.numpy(), bins=80, range=(-2, 2.2), density=True, color=FAINT)
        axes.hist(drawn.numpy(), bins=80, range=(-2, 2.2), density=True, histtype="step", color=BLUE, lw=1)
        axes.plot(grid, exact, color=ORANGE, lw=1.2, label="exact density")
        axes.plot([], [], color=BLUE, label=f"samples, {steps} steps, {calls} calls")

    return [
        Panel("Distance from an exact mixture", "calls of the network", "Wasserstein-1 distance", convergence),
        Panel(f"Samples after about {_FEW} calls", "value", "density", samples),
    ]


@cache
def errors_of(part: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return calls of the network, and the Wasserstein-1 distance of the samples, for several numbers of steps."""
    found = {}
    for steps in _COUNTS:
        try:
            drawn, calls = run(part, steps)
        except DiffkitError:  # too few steps for this sampler
            continue
        found[calls] = _distance(drawn)
    return tuple(found), tuple(found.values())


def calls_per_step(part: Any) -> float:
    """Return how often a step calls the network, over many steps."""
    return run(part, 100)[1] / 100


@cache
def run(part: Any, steps: int) -> tuple[Tensor, int]:
    """Return samples, sorted, and the number of calls of the network; the noise at level T is spread evenly."""
    of, calls = system(), [0]
    exact = network(DATA, of)

    def counted(x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        calls[0] += 1
        return exact(x, time)

    start = torch.special.ndtri(_middles())[:, None, None]
    noise = _noise(start) if part.stochastic else None
    out = of.sample_from(counted, start, noise, of.table_for(steps), sampler=part)
    return out.flatten().sort().values, calls[0]


def _noise(like: Tensor) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _middles() -> Tensor:
    return (torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS


@cache
def _quantiles() -> Tensor:
    """Quantiles of the mixture, by interpolation of its distribution function on a fine grid."""
    grid = np.linspace(-4, 4, 400_001)
    density = DATA.log_prob(torch.from_numpy(grid)[:, None, None]).exp().numpy()
    mass = np.cumsum(density)
    return torch.from_numpy(np.interp(_middles().numpy(), mass / mass[-1], grid))


def _distance(drawn: Tensor) -> float:
    return float((drawn - _quantiles()).abs().mean())


def _independent() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(_DRAWS, generator=generator, dtype=torch.float64).numpy()
    return torch.from_numpy(np.interp(u, _middles().numpy(), _quantiles().numpy())).sort().values


def _steps_for(part: Any, calls: int) -> int:
    """The number of steps whose calls come nearest to a number."""
    return min(range(2, calls + 1), key=lambda steps: abs(_calls(part, steps) - calls))


def _calls(part: Any, steps: int) -> float:
    try:
        return run(part, steps)[1]
    except DiffkitError:
        return float("inf")
