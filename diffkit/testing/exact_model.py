"""An exact model on a Gaussian path of time, to test anybody's solver against: x_start, eps, v, velocity and score.

model = ExactModel(GaussianOracle(0.3, 0.5), path_named("linear"))
model.velocity(x, t)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError, did_you_mean

Scale = Callable[[Tensor], Tensor]
Time = float | Tensor


@frozen(eq=False)
class TimePath:
    """Gaussian path ``x_t = alpha(t) x_start + sigma(t) eps``, as a solver's own time has it.

    Attributes:
        label: Its name in results.
        alpha, sigma: Of float64 tensors of times, elementwise.
        clean: Time of clean data.
        noisy: A time with almost only noise, log_snr -9 or below; times between them have every ratio of the two.
    """

    label: str
    alpha: Scale
    sigma: Scale
    clean: float
    noisy: float

    def at(self, t: Time) -> tuple[float, float]:
        """Return alpha and sigma at one time."""
        time = torch.as_tensor(t, dtype=torch.float64)
        return float(self.alpha(time)), float(self.sigma(time))

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Return the times of values of log_snr, found by bisection to rounding."""
        ratio = (-log_snr / 2).exp()
        low, high = (torch.full_like(ratio, end) for end in (self.clean, self.noisy))
        for _ in range(80):
            middle = (low + high) / 2
            below = self.sigma(middle) < ratio * self.alpha(middle)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


PATHS = {
    path.label: path
    for path in (
        TimePath("vp", torch.cos, torch.sin, 0.0, math.pi / 2),
        TimePath("ve", torch.ones_like, torch.clone, 0.0, 100.0),
        TimePath("linear", lambda t: 1 - t, torch.clone, 0.0, 1.0),
    )
}
"""The paths that have a name. Time is an angle, the noise scale, and the share of noise."""


def path_named(path: str | TimePath) -> TimePath:
    """Return a path by its name, "vp", "ve" or "linear", or as it is given."""
    if isinstance(path, TimePath):
        return path
    if path not in PATHS:
        raise OptionError(f"no path named {path!r}{did_you_mean(path, list(PATHS))} (known: {', '.join(PATHS)})")
    return PATHS[path]


@frozen(eq=False)
class ExactModel:
    """What a perfect network returns at any time of a path; arithmetic is float64, results have the dtype of x.

    Attributes:
        oracle: The data, as `diffkit.testing.GaussianOracle` has it.
        path: The path of time.
        on_call: Called with (x, alpha, sigma) at every evaluation, if given.
    """

    oracle: Any
    path: TimePath
    on_call: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def alpha(self, t: Time) -> Tensor:
        """Return the scale of the signal."""
        return self.path.alpha(torch.as_tensor(t, dtype=torch.float64))

    def sigma(self, t: Time) -> Tensor:
        """Return the scale of the noise."""
        return self.path.sigma(torch.as_tensor(t, dtype=torch.float64))

    def x_start(self, x: Tensor, t: Time) -> Tensor:
        """Return E[x_start | x_t], of the shape of x; t is a number, or has one for each row."""
        return self._estimate(x, t)[0].to(x.dtype)

    def eps(self, x: Tensor, t: Time) -> Tensor:
        """Return E[eps | x_t]."""
        return self._estimate(x, t)[1].to(x.dtype)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """Return the gradient of the log-density, -eps / sigma."""
        _, eps, _, sigma = self._estimate(x, t)
        return (-eps / sigma).to(x.dtype)

    def v(self, x: Tensor, t: Time) -> Tensor:
        """Return v = alpha eps - sigma x_start."""
        x_start, eps, alpha, sigma = self._estimate(x, t)
        return (alpha * eps - sigma * x_start).to(x.dtype)

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """Return dx/dt of the probability-flow ODE, alpha' x_start + sigma' eps."""
        x_start, eps, alpha, _ = self._estimate(x, t)
        rates = (_rate(scale, t).expand_as(alpha.flatten()).view_as(alpha) for scale in _scales(self.path))
        of_signal, of_noise = rates
        return (of_signal * x_start + of_noise * eps).to(x.dtype)

    def watch(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
        """Note an evaluation; who asks the oracle instead of the model calls it, so that the laws see what is asked."""
        if self.on_call is not None:
            self.on_call(x, alpha, sigma)

    def _estimate(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = (-1, *(1,) * (x.ndim - 1))
        alpha, sigma = self.alpha(t).reshape(shape), self.sigma(t).reshape(shape)
        self.watch(x, alpha, sigma)
        x = x.double()
        x_start = self.oracle.x_start(x, alpha, sigma)
        return x_start, (x - alpha * x_start) / sigma, alpha, sigma


def _scales(path: TimePath) -> tuple[Scale, Scale]:
    return path.alpha, path.sigma


def _rate(scale: Scale, t: Time) -> Tensor:
    """Return the derivative of alpha or sigma at times."""
    with torch.enable_grad():
        time = torch.as_tensor(t, dtype=torch.float64).detach().clone().requires_grad_()
        value = scale(time)
        if not value.requires_grad:
            return torch.zeros_like(time)
        return torch.autograd.grad(value.sum(), time)[0].reshape(-1)
