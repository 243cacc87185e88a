"""Exact denoisers: data whose every marginal, score, posterior mean and likelihood is known in closed form.

An oracle stands for a distribution of clean data. On any Gaussian path ``x_t = alpha x_start + sigma eps`` it is a
perfect network, so what a sampler, a loss or a bound makes of it is the part's own doing.

    oracle = GaussianOracle(mean=0.3, std=0.5)
    oracle(x, level).x_start                       # E[x_start | x_t], as a sampler's denoise
    oracle.at(alpha, sigma).log_prob(x)            # log-density of x_t, nats
    oracle.flow(x, (alpha_t, sigma_t), (alpha_s, sigma_s))   # exact solution of the probability-flow ODE
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.protocols import Level, Prediction
from diffkit.system.coefficients import LEVEL, level_coefficients

Number = float | Tensor

_NEWTON = 40
"""Steps of Newton's method for a quantile, at most: bisection alone reaches 1e-12 of the bracket."""
_SMALL = 1e-9
"""A last step of this share of the bracket: Newton's method has then converged to rounding error in the next."""


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _integers(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.int64)


def _sum_flat(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


class Oracle(Protocol):
    """Oracle: a distribution of clean data that is known exactly."""

    def at(self, alpha: Number, sigma: Number) -> Oracle:
        """Return the distribution of ``alpha x_start + sigma eps``."""

    def x_start(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x_start | x_t], (B, C, *S)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data, (B,), nats."""

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the posterior mean at a level, as a sampler's ``denoise``; it knows no log-variance."""


@frozen(eq=False)
class GaussianOracle:
    """Oracle: normal data with independent values.

    Attributes:
        mean: A number, or values that broadcast against (C, *S).
        std: Likewise, >= 0.
    """

    mean: Tensor = field(converter=_tensor)
    std: Tensor = field(converter=_tensor)

    def at(self, alpha: Number, sigma: Number) -> GaussianOracle:
        """Return the distribution of ``alpha x_start + sigma eps``, normal again."""
        return GaussianOracle(alpha * self.mean, (alpha**2 * self.std**2 + sigma**2) ** 0.5)

    def x_start(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x_start | x_t], linear in x."""
        mean, std = self._like(x)
        variance = std * std
        gain = alpha * variance / (alpha * alpha * variance + sigma * sigma)
        return mean + gain * (x - alpha * mean)

    def variance(self, alpha: Number, sigma: Number) -> Tensor:
        """Return Var[x_start | x_t], which no x_t changes."""
        return self.std**2 * sigma**2 / (alpha**2 * self.std**2 + sigma**2)

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient of the log-density, (B, C, *S)."""
        mean, std = self._like(x)
        return (mean - x) / std**2

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, (B,), nats."""
        mean, std = self._like(x)
        return _sum_flat(-0.5 * ((x - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi))

    def flow(self, x: Tensor, t: tuple[Number, Number], s: tuple[Number, Number]) -> Tensor:
        """Return where the probability-flow ODE takes x.

        Args:
            x: Data at t, (B, C, *S).
            t, s: (alpha, sigma) of the two levels; s may be the noisier one.
        """
        start, end = self.at(*t), self.at(*s)
        mean_t, std_t = start._like(x)
        mean_s, std_s = end._like(x)
        return mean_s + std_s / std_t * (x - mean_t)

    def sample(self, noise: Tensor) -> Tensor:
        """Return data made of standard normal noise, of its shape."""
        mean, std = self._like(noise)
        return mean + std * noise

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the posterior mean at a level; no log-variance."""
        return Prediction(self.x_start(x, level.alpha, level.sigma), None)

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.to(x), self.std.to(x)


@frozen(eq=False)
class DiracOracle:
    """Oracle: data that is a single point.

    Attributes:
        x_start_value: A number, or values that broadcast against (C, *S).
    """

    x_start_value: Tensor = field(converter=_tensor, alias="x_start")

    def at(self, alpha: Number, sigma: Number) -> GaussianOracle:
        """Return the distribution of ``alpha x_start + sigma eps``."""
        return GaussianOracle(self.x_start_value, 0.0).at(alpha, sigma)

    def x_start(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return the point, whatever x is."""
        return self.x_start_value.to(x).expand_as(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return +inf at the point and -inf elsewhere, (B,); use `at` a noisy level for a density."""
        hit = (x == self.x_start_value.to(x)).flatten(1).all(1)
        return torch.where(hit, math.inf, -math.inf)

    def flow(self, x: Tensor, t: tuple[Number, Number], s: tuple[Number, Number]) -> Tensor:
        """Return where the probability-flow ODE takes x; see `GaussianOracle.flow`."""
        return GaussianOracle(self.x_start_value, 0.0).flow(x, t, s)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the point; no log-variance."""
        return Prediction(self.x_start(x, level.alpha, level.sigma), None)


@frozen(eq=False)
class MixtureOracle:
    """Oracle: a mixture of isotropic normals of one width; its denoiser is not linear.

    Attributes:
        weights: Of each component, (K,), normalized here.
        means: (K, C, *S).
        std: One number > 0 for all.
    """

    weights: Tensor = field(converter=_tensor)
    means: Tensor = field(converter=_tensor)
    std: Tensor = field(converter=_tensor)

    def at(self, alpha: Number, sigma: Number) -> MixtureOracle:
        """Return the distribution of ``alpha x_start + sigma eps``, a mixture again."""
        return MixtureOracle(self.weights, alpha * self.means, (alpha**2 * self.std**2 + sigma**2) ** 0.5)

    def x_start(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x_start | x_t], (B, C, *S)."""
        alpha, sigma = _one_for_each(alpha, x), _one_for_each(sigma, x)
        means, std = self.means.to(x), self.std.to(x)
        variance = alpha**2 * std**2 + sigma**2
        away = x[:, None] - alpha * means
        share = self._shares(-0.5 * (away**2 / variance).flatten(2).sum(2))
        share = share.view(*share.shape, *(1,) * (x.ndim - 1))
        return (share * (means + alpha * std**2 / variance * away)).sum(1)

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient of the log-density, (B, C, *S)."""
        away = self.means.to(x) - x[:, None]
        share = self._shares(-0.5 * (away / self.std.to(x)).square().flatten(2).sum(2))
        share = share.view(*share.shape, *(1,) * (x.ndim - 1))
        return (share * away).sum(1) / self.std.to(x) ** 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, (B,), nats."""
        std = self.std.to(x)
        squared = ((x[:, None] - self.means.to(x)) / std).square().flatten(2)
        single = -0.5 * squared.sum(2) - squared.shape[2] * (torch.log(std) + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(self._log_weights().to(x) + single, 1)

    def flow(self, x: Tensor, t: tuple[Number, Number], s: tuple[Number, Number], steps: int = 1000) -> Tensor:
        """Return where the probability-flow ODE takes x; see `GaussianOracle.flow`.

        There is no closed form: ``d(x/alpha) / d log rho = rho eps``, ``rho = sigma / alpha``, is integrated by the
        classical Runge-Kutta method of order 4. Both levels need noise and signal.
        """
        start, end = (math.log(sigma / alpha) for alpha, sigma in (t, s))
        h = (end - start) / steps

        def slope(y: Tensor, log_rho: float) -> Tensor:
            return y - self.x_start(y, 1.0, math.exp(log_rho))

        y = x / t[0]
        for i in range(steps):
            at = start + i * h
            k1 = slope(y, at)
            k2 = slope(y + h / 2 * k1, at + h / 2)
            k3 = slope(y + h / 2 * k2, at + h / 2)
            k4 = slope(y + h * k3, at + h)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return s[0] * y

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the posterior mean at a level; no log-variance."""
        return Prediction(self.x_start(x, level.alpha, level.sigma), None)

    def _log_weights(self) -> Tensor:
        return torch.log(self.weights / self.weights.sum(-1, keepdim=True))

    def _shares(self, log_density: Tensor) -> Tensor:
        return torch.softmax(self._log_weights().to(log_density) + log_density, 1)


@frozen(eq=False)
class LabelledMixtureOracle:
    """Oracle: a mixture whose components have labels, so that every guided field is known in closed form.

    Attributes:
        mixture: Data of all labels.
        labels: Label of each component, (K,), 0..N-1; each has one component or more.
    """

    mixture: MixtureOracle
    labels: Tensor = field(converter=_integers)

    @property
    def num_classes(self) -> int:
        """N."""
        return int(self.labels.max()) + 1

    def given(self, label: int) -> MixtureOracle:
        """Return the distribution of data with a label."""
        own = self.labels == label
        return MixtureOracle(self.mixture.weights[own], self.mixture.means[own], self.mixture.std)

    def given_rows(self, y: Tensor) -> MixtureOracle:
        """Return the distribution of rows with a label each, (B,); N is that of all labels."""
        own = (self.labels == y[:, None]) | (y[:, None] == self.num_classes)
        return MixtureOracle(self.mixture.weights.where(own, 0), self.mixture.means, self.mixture.std)

    def log_class_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return ``log p(y | x_t)`` of every label, (B, N)."""
        share = torch.stack([self.mixture.weights[self.labels == label].sum() for label in range(self.num_classes)])
        joint = [self.given(label).at(alpha, sigma).log_prob(x) for label in range(self.num_classes)]
        return (torch.stack(joint, 1) + share.to(x).log()).log_softmax(1)

    def guided(self, x: Tensor, label: int, weight: float, alpha: float, sigma: float) -> Tensor:
        """Return the estimate of x_start by the score of ``p(x_t) p(y | x_t)^weight``, (B, C, *S).

        That is what classifier-free guidance of scale ``weight`` estimates, and what guidance by the exact classifier
        adds to a network without labels.
        """
        score, without = (one.at(alpha, sigma).score(x) for one in (self.given(label), self.mixture))
        return (x + sigma**2 * (without + weight * (score - without))) / alpha


@frozen(eq=False)
class SeparableMixtureOracle:
    """Oracle: independent values, each a mixture of normals; its flow map is exact between any two levels.

    In one dimension the probability-flow ODE keeps the quantiles: with F the distribution function of x at a level,
    ``F_s(x_s) = F_t(x_t)``, solved here by Newton's method to rounding error. It can be differentiated, in forward mode
    too, by x and by the levels. One end may be clean data, and one without signal.

    Attributes:
        weights: Of each component, (K,), normalized here.
        means, stds: Of each component, (K,); stds > 0.
    """

    weights: Tensor = field(converter=_tensor)
    means: Tensor = field(converter=_tensor)
    stds: Tensor = field(converter=_tensor)

    def at(self, alpha: Number, sigma: Number) -> SeparableMixtureOracle:
        """Return the distribution of ``alpha x_start + sigma eps``, numbers for a level."""
        return SeparableMixtureOracle(self.weights, alpha * self.means, (alpha**2 * self.stds**2 + sigma**2) ** 0.5)

    def x_start(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x_start | x_t], (B, C, *S)."""
        share, away, variance = self._components(x, alpha, sigma)
        alpha = alpha[..., None] if isinstance(alpha, Tensor) else alpha
        return (share * (self.means.to(x) + alpha * self.stds.to(x) ** 2 / variance * away)).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, (B,), nats."""
        _, away, variance = self._components(x, 1.0, 0.0)
        single = self._log_weights().to(x) - 0.5 * (away**2 / variance + torch.log(2 * math.pi * variance))
        return _sum_flat(torch.logsumexp(single, -1))

    def flow(self, x: Tensor, t: tuple[Number, Number], s: tuple[Number, Number]) -> Tensor:
        """Return where the probability-flow ODE takes x; levels (alpha, sigma), numbers or (B,1..)."""
        tails = self._tails(x, *t)
        y = self._quantile((tails[0].detach(), tails[1].detach()), *s)
        for _ in range(2):  # the last steps carry the derivatives
            y = y - self._newton_step(y, tails, *s)
        return y

    def sample(self, noise: Tensor) -> Tensor:
        """Return data made of standard normal noise, of its shape: the flow map from pure noise."""
        return self.flow(noise, (0.0, 1.0), (1.0, 0.0))

    def __call__(self, x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        """Return what a network of two times estimates: the average of E[x_start | x_t] on the way to a level.

        Without a second level, or at the same one, it is the posterior mean.
        """
        if to is None:
            return Prediction(self.x_start(x, level.alpha, level.sigma), None)
        return Prediction(self.average(x, (level.alpha, level.sigma), (to.alpha, to.sigma)), None)

    def average(self, x: Tensor, t: tuple[Number, Number], s: tuple[Number, Number]) -> Tensor:
        """Return A with ``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) A``."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
        keep = sigma_s / sigma_t
        move = torch.as_tensor(alpha_s - alpha_t * keep)
        still = move.abs() < 1e-9
        way = self.flow(x, t, s) - keep * x
        return torch.where(still, self.x_start(x, *t), way / torch.where(still, 1.0, move))

    def _components(self, x: Tensor, alpha: Number, sigma: Number) -> tuple[Tensor, Tensor, Tensor]:
        """Share, distance and variance of each component at x, (B, C, *S, K)."""
        alpha, sigma = (v[..., None] if isinstance(v, Tensor) else v for v in (alpha, sigma))
        variance = alpha**2 * self.stds.to(x) ** 2 + sigma**2
        away = x[..., None] - alpha * self.means.to(x)
        share = torch.softmax(self._log_weights().to(x) - 0.5 * (away**2 / variance + torch.log(variance)), -1)
        return share, away, variance

    def _tails(self, x: Tensor, alpha: Number, sigma: Number) -> tuple[Tensor, Tensor]:
        """Log of the probability below x and above it."""
        _, away, variance = self._components(x, alpha, sigma)
        scaled = away / variance.sqrt()
        sides = (torch.special.log_ndtr(scaled), torch.special.log_ndtr(-scaled))
        below, above = (torch.logsumexp(self._log_weights().to(x) + side, -1) for side in sides)
        return below, above

    def _newton_step(self, y: Tensor, wanted: tuple[Tensor, Tensor], alpha: Number, sigma: Number) -> Tensor:
        """How far y is beyond the quantile, to first order, in the log of the smaller tail, which is exact there."""
        _, away, variance = self._components(y, alpha, sigma)
        single = self._log_weights().to(y) - 0.5 * (away**2 / variance + torch.log(2 * math.pi * variance))
        log_density = torch.logsumexp(single, -1).detach()
        below, above = self._tails(y, alpha, sigma)
        left = wanted[0] < wanted[1]
        gap, tail = torch.where(left, below - wanted[0], wanted[1] - above), torch.where(left, below, above)
        return gap * (tail.detach() - log_density).clamp(max=700).exp()

    def _quantile(self, wanted: tuple[Tensor, Tensor], alpha: Number, sigma: Number) -> Tensor:
        """Where the tails are ``wanted``: Newton's method, held within a bracket by bisection."""
        alpha, sigma = (v.detach() if isinstance(v, Tensor) else v for v in (alpha, sigma))
        reach = torch.as_tensor(alpha * (self.means.abs().max() + 9 * self.stds.max()) + 9 * sigma)
        high = torch.zeros_like(wanted[0]) + reach.to(wanted[0])
        low, y = -high, torch.zeros_like(high)
        for _ in range(_NEWTON):
            step = self._newton_step(y, wanted, alpha, sigma)
            low, high = torch.where(step > 0, low, y), torch.where(step > 0, y, high)
            y = torch.where((y - step >= low) & (y - step <= high), y - step, (low + high) / 2)
            if not (step.abs() > _SMALL * high).any():
                break
        return y

    def _log_weights(self) -> Tensor:
        return torch.log(self.weights / self.weights.sum())


def network_of(oracle: Oracle, system: Any, table: Any = None) -> Callable[..., Tensor]:
    """Return an oracle as the network of a system: ``model(x, time)``, whatever the system's network predicts.

    The level is found from the time, so times must differ between levels. Variance channels, if any, are 0.

    Args:
        oracle: The oracle.
        system: As `diffkit.compose` returns.
        table: The table in use, if it is not the training table.
    """
    output = _output_of(system, table)
    return lambda x, time, **conditions: output(oracle, x, time)


def labelled_network_of(oracle: LabelledMixtureOracle, system: Any, table: Any = None) -> Callable[..., Tensor]:
    """Return an oracle as a network ``model(x, time, y)``, with the label N for "no class"; see `network_of`."""
    output = _output_of(system, table)
    return lambda x, time, y: output(oracle.given_rows(y), x, time)


def _output_of(system: Any, table: Any) -> Callable[[Oracle, Tensor, Tensor], Tensor]:
    """What an oracle's network returns for x and time."""
    columns = level_coefficients(system.parts, table or system.table)
    rows = {name: torch.from_numpy(columns[name][1:].copy()) for name in LEVEL}
    extra = system.parts.var.extra_outputs

    def output(oracle: Oracle, x: Tensor, time: Tensor) -> Tensor:
        k = (time.double()[:, None] - rows["time"]).abs().argmin(1)
        at = {name: row[k].view(-1, *(1,) * (x.ndim - 1)) for name, row in rows.items()}
        x_t = x.double() / at["c_in"]
        out = (oracle.x_start(x_t, at["alpha"], at["sigma"]) - at["c_skip"] * x_t) / at["c_out"]
        return torch.cat([out, *[torch.zeros_like(out)] * extra], 1).to(x.dtype)

    return output


def _one_for_each(value: Number, x: Tensor) -> Number:
    """Reshape (B,1..) to broadcast with (B, K, C, *S); return a number as it is."""
    return value[:, None] if isinstance(value, Tensor) and value.ndim == x.ndim else value


def step_estimate(oracle: Any, x: Tensor, level: Level, to: Level) -> Tensor:
    """Return the estimate of clean data by which one straight step is that of the probability-flow ODE, (B, C, *S).

    ``x_s = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) x_start``: what a network of two times that
    learned the flow map returns for ``denoise(x, t, to=s)``. At s = t it is the posterior mean.

    Args:
        oracle: An oracle with `flow`.
        x: Data at the level t, (B, C, *S).
        level, to: The levels t and s.
    """
    ratio = to.sigma / level.sigma
    gain = to.alpha - level.alpha * ratio
    still = gain == 0
    end = oracle.flow(x, (level.alpha, level.sigma), (to.alpha, to.sigma))
    return torch.where(still, oracle(x, level).x_start, (end - ratio * x) / torch.where(still, 1.0, gain))
