"""The law of losses that learn a flow map: on a mixture, where it is known, they are least at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import ContinuousTimestepSampler, Level, Loss, NetworkLoss, PairSampler, State
from diffkit.system.loss_network import NetworkCall
from diffkit.table import Coefs
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require
from diffkit.testing._paths import LINEAR, VP, LevelPairs, NoisePath, compose_on_path
from diffkit.testing.oracles import SeparableMixtureOracle

OPTIMA = ("flow_map", "to_clean")
DATA = SeparableMixtureOracle([0.4, 0.6], [-0.9, 0.8], [0.35, 0.25])
_MEANS = ("v", "eps", "x_start")
_STEPS = (80, 160)  # levels: what a difference of neighbours leaves is to halve
_PAIRS = ((0.75, 0.75), (0.75, 0.25), (0.5, 0.0))  # levels, as shares of all
_POINTS = (-0.9, 0.1, 0.8)
_NODES = 12  # of a quadrature for each component, exact to 1e-9 here
_FULL = 1000.0  # the paths' time at full noise
_OFF = 0.2  # added to the estimate of clean data for the size of an ordinary gradient
_TINY = 1e-9  # a gradient that is rounding error
_EXACT, _NEAR = 1e-5, 0.3  # of that size: no gradient; one that may be left by the distance of levels


@frozen
class ContinuousPairs(PairSampler, ContinuousTimestepSampler):
    """Timestep sampler of the checks: pairs of log_snr."""

    def sample(  # type: ignore[override]  # as of the protocol
        self, state: State, u: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log_snr of t and s, (B,) float64, and weights of one."""
        first, second = (2 * torch.special.ndtri(u[:, i].clamp(1e-12, 1 - 1e-12)) for i in range(2))
        return torch.minimum(first, second), torch.maximum(first, second), torch.ones_like(first, dtype=torch.float32)


@frozen(eq=False)
class ExactNetwork:
    """The exact flow map as a network with one fault of known size: ``off time cos(x)`` added to its x_start.

    Attributes:
        path, mean: What it is a network for; c_in has to be 1.
        to_clean: What it is without a second time: the flow map to clean data; otherwise the denoiser.
        off: Size of the fault, (B, 1).
    """

    path: NoisePath
    mean: Any
    to_clean: bool
    off: Tensor

    def __call__(self, x: Tensor, time: Tensor, time_to: Tensor | None = None) -> Tensor:
        """Return the mean channels."""
        t = self._scales(time, x)
        if time_to is None and not self.to_clean:
            average = DATA.x_start(x, *t)
        else:
            average = DATA.average(x, t, self._scales(torch.zeros_like(time) if time_to is None else time_to, x))
        c_skip, c_out, _ = self.mean.scalings(Coefs(*t, 2 * torch.log(t[0] / t[1])), None)
        fault = self.off * (time / _FULL).view(-1, 1) * torch.cos(x)
        out: Tensor = (average + fault - c_skip * x) / c_out
        return out

    def _scales(self, time: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at a time, which is the share of noise in the variance."""
        noise = (time.to(x.dtype) / _FULL).view(-1, *(1,) * (x.ndim - 1))
        alpha, sigma = (1 - noise).sqrt(), noise.sqrt()
        total = 1.0 if self.path.kind == "vp" else 1 / (alpha + sigma)
        return total * alpha, total * sigma


@frozen(eq=False)
class FlowMapCase:
    """Case of the check: a loss in a composition, at one pair of levels.

    Attributes:
        system: The composition.
        where: What it is, for a finding.
        path: Its noise path.
        t, s: The levels as drawn, 0-d; s is None without pairs.
        to_clean: Whether the exact network goes to clean data.
    """

    system: Any
    where: Where
    path: NoisePath
    t: Tensor
    s: Tensor | None
    to_clean: bool

    def pull(self, size: float) -> float:
        """Return the largest gradient of the loss by a fault of this size, a mean over the data given x_t."""
        level = self.system.objective.level(self.t[None], torch.zeros(1, 1, dtype=torch.float64))
        x_t, x_start, weight = _given(level)
        rows, off = len(x_t), torch.full_like(x_t, size).requires_grad_()
        noise = (x_t - level.alpha * x_start) / level.sigma
        pairs = {} if self.s is None else {"level_to": self.s.repeat(rows)}
        network = ExactNetwork(self.path, self.system.parts.mean, self.to_clean, off)
        teacher = self._teacher(off.detach())
        terms = self.system.loss_terms(network, x_start, self.t.repeat(rows), noise, teacher=teacher, **pairs)
        (found,) = torch.autograd.grad((weight * terms["loss"]).sum(), off)
        return float(found.view(len(_POINTS), -1).sum(1).abs().max())

    def _teacher(self, off: Tensor) -> NetworkCall:
        """A running mean is as the network is; another system is the exact denoiser."""
        parts, teacher = self.system.parts, self.system.parts.loss.teacher
        running = teacher is not None and teacher.split("_")[0] == "ema"
        exact = ExactNetwork(
            self.path, parts.mean, self.to_clean and running, off if running else torch.zeros_like(off)
        )
        return NetworkCall(exact, parts, self.system.objective.scales_input, {})


def _given(level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """Points x_t, (P N, 1), values of x_start given each, (P N, 1), and weights, (P N,): Gauss-Hermite by component."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(_NODES))
    x_t = torch.tensor(_POINTS, dtype=torch.float64)[:, None] * (level.alpha + level.sigma)
    variance = level.alpha**2 * DATA.stds**2 + level.sigma**2
    away = x_t - level.alpha * DATA.means
    share = torch.softmax(torch.log(DATA.weights) - 0.5 * (away**2 / variance + torch.log(variance)), 1)
    mean, std = DATA.means + level.alpha * DATA.stds**2 / variance * away, DATA.stds * level.sigma / variance.sqrt()
    x_start = mean[..., None] + std[..., None] * nodes
    shares = share[..., None] * weights / weights.sum()
    return x_t.repeat_interleave(x_start[0].numel(), 0), x_start.reshape(-1, 1), shares.flatten()


def _cases(loss: NetworkLoss, num_steps: int) -> Iterator[FlowMapCase]:
    """Yield the loss with every mean and kind of levels it goes with, on two paths, at some pairs of levels."""
    timesteps: Mapping[str, Any] = {"levels": "uniform"}
    if loss.needs_pairs:
        timesteps = {"levels": LevelPairs(), "continuous levels": ContinuousPairs()}
    for path in (VP, LINEAR):
        for mean in _MEANS:
            for name, sampler in list(timesteps.items())[: 2 if mean == _MEANS[0] else 1]:
                where = record_where(Where(path.label, num_steps, detail=f"mean {mean!r}, {name}"))
                slots: dict[str, Any] = dict(loss=loss, mean=mean, timesteps=sampler, data_shape=(1,))
                try:
                    system = compose_on_path(path, num_steps, **slots)
                except (CompositionError, OptionError):
                    continue
                for shares in _PAIRS if loss.needs_pairs else ((0.5, 0.0), (0.25, 0.0)):
                    t, s = (torch.tensor(round(num_steps * share)) for share in shares)
                    if system.parts.continuous_time:
                        t, s = (torch.tensor(system.table.log_snr[int(k)]) for k in (t, s))
                    at = evolve(where, level=None, detail=f"{where.detail}, from {shares[0]:g} to {shares[1]:g} of T")
                    yield FlowMapCase(system, at, path, t, s if loss.needs_pairs else None, loss.optimum == "to_clean")


@check("loss")
def least_at_the_exact_flow_map(loss: Loss) -> None:
    """On a mixture of normals, a loss that says it learns a flow map has no gradient at the exact one.

    The gradient is a mean over the data given x_t. Where a loss compares neighbouring levels it may leave some, which
    falls with their distance.
    Usually: a sign of the derivative along the path, a factor of the length of the step, the end of the step where its
    start belongs, or a step that begins where another has not ended.
    """
    optimum = loss.optimum if isinstance(loss, NetworkLoss) else None
    if optimum is None:
        raise NotApplicableError("it says of no network that it is its optimum")
    require(optimum in OPTIMA, f"an optimum among {', '.join(map(repr, OPTIMA))}", repr(optimum))
    assert isinstance(loss, NetworkLoss)
    found: list[list[float]] = []
    cases: list[FlowMapCase] = []
    for num_steps in _STEPS:
        cases = list(_cases(loss, num_steps))
        found.append([])
        for case in cases:
            record_where(case.where)
            usual = case.pull(_OFF)
            require(usual > _TINY, "a gradient into a network that is off by 0.2 time cos(x)", usual, case.where)
            found[-1].append(case.pull(0.0) / usual)
    require(bool(cases), "a path and a mean that it goes with", "all are refused")
    for case, coarse, fine in zip(cases, *found, strict=True):
        vanishes = fine <= _EXACT or (fine <= _NEAR and fine <= 0.7 * coarse)
        ordinary = f"{fine:.3g} of the usual one, and {coarse:.3g} with half as many levels"
        require(vanishes, "no gradient at the exact flow map", ordinary, case.where)
