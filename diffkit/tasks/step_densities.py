"""Log-probabilities of the steps of a rollout, which reinforcement learning weights by advantages.

A step of most stochastic samplers is affine in its noise, each element in its own: ``x_s = mean + std noise``, so it is
a draw from a normal distribution. Mean and std are found by taking the step twice, with noise 0 and 1 and the same
evaluations of the network, so this holds for any such sampler, with guidance, clipping and learned variances. It is
computed in float64, as std is a small difference of large numbers; the network computes in its own precision.

Source: Black et al. 2023, arXiv:2305.13301 (DDPO), section 4.2, for DDPM's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_callable, check_integer
from diffkit.protocols import Denoise, EarlyNoiseSampler, Level, Model, Prediction, Sampler, State
from diffkit.system.conditions import mapped
from diffkit.system.sampling import Program, Row
from diffkit.tasks.rollouts import Rollout
from diffkit.tensors import precision_of


@frozen(eq=False)
class StepDensities:
    """Densities of the steps of a rollout.

    Attributes:
        values: Log-density of x after each step given x and state before it, (steps, B), nats; 0 for steps without
            noise, which have no density.
        noisy: Which steps add noise, (steps, B) bool.
        means: Mean of each step, (steps, B, C, *S); float64.
        stds: Standard deviation of its noise, broadcast to that shape.
    """

    values: Tensor
    noisy: Tensor
    means: Tensor
    stds: Tensor

    @property
    def total(self) -> Tensor:
        """Log-density of all noisy steps, (B,)."""
        return self.values.sum(0)

    def kl(self, other: StepDensities) -> Tensor:
        """KL of each step to that of another network from the same x, (steps, B), nats; 0 for steps without noise."""
        mine, its = (where_noisy(each.stds, each.noisy, 1.0) for each in (self, other))
        ratio = (mine / its).square()
        distance = ((self.means - other.means) / its).square()
        return where_noisy((0.5 * (ratio + distance - 1 - ratio.log())).flatten(2).sum(2), self.noisy, 0.0)


def log_prob(rollout: Rollout, *, model: Model | None = None, steps: Sequence[int] | None = None) -> StepDensities:
    """Return the log-probability of each step of a rollout, with gradients for the network if they are enabled.

    Every step is taken again from the recorded x and state: at the network that made the rollout it is its
    log-probability, and its gradient that of the policy. Estimates that a multistep sampler remembers are the recorded
    ones.

    Args:
        rollout: Of a sampler whose steps are normal.
        model: The network to score the steps with; that of the rollout by default. In eval mode if it is the system's.
        steps: Which steps, by their index from 0; all by default. Fewer need less memory for gradients.
    Raises:
        OptionError: The sampler adds no noise, or before it evaluates the network; or there is no such step.
    """
    job = rollout.job
    check_normal(job.parts.sampler, job.parts.label("sampler"))
    model = job.model if model is None else model
    check_callable("model", model, "model(x, time, **conditions)")
    chosen = range(rollout.num_steps) if steps is None else [_checked_step(i, rollout.num_steps) for i in steps]
    if not chosen:
        raise OptionError("steps must name at least one step")
    program, rows = job.program(), range(job.n)
    job = attrs.evolve(job, model=_for_float64(model, rollout.x.dtype))
    denoisers = job.denoisers(program, rows)
    found = []
    with job.running("log_prob", len(chosen), False), torch.inference_mode(False):
        coefficients = program.columns.on(rollout.x.device, torch.float64)
        for i in chosen:
            x, after, state = mapped(_in_float64, (rollout.x[i], rollout.x[i + 1], rollout.states[i]))
            denoise = denoisers[i] if isinstance(denoisers, list) else denoisers
            found.append(step_density(program, denoise, x, state, coefficients[i], after, program.is_last(i)))
    return StepDensities(*(torch.stack(each) for each in zip(*found, strict=True)))


def check_normal(sampler: Sampler, label: str) -> None:
    """Raise `OptionError` unless the steps of a sampler are normal distributions."""
    if not sampler.stochastic:
        raise OptionError(
            f"{label} adds no noise, so its steps have no density; sample with sampler='ancestral', or with "
            "sampler=('ddim', {'eta': 1.0})"
        )
    if isinstance(sampler, EarlyNoiseSampler):
        raise OptionError(
            f"{label} adds noise before it evaluates the network, so its steps are not normal and have no density in "
            "closed form; sample with sampler='ancestral', or with sampler=('ddim', {'eta': 1.0})"
        )


def step_density(
    program: Program, denoise: Denoise, x: Tensor, state: State, row: Tensor | Row, after: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-density (B,), whether there is noise (B,), mean and std, each (B, C, *S), of one step.

    Args:
        program, denoise, x, state, row, last: As of `Program.step`.
        after: x after the step.
    """
    same = _SameEvaluations(denoise)
    mean, _ = program.step(same, x, state, row, torch.zeros_like(x), last)
    same.again = True
    std = program.step(same, x, state, row, torch.ones_like(x), last)[0] - mean
    noisy = (std > 0).flatten(1).all(1)
    positive = where_noisy(std, noisy, 1.0)
    each = -0.5 * (((after - mean) / positive).square() + math.log(2 * math.pi)) - positive.log()
    return where_noisy(each.flatten(1).sum(1), noisy, 0.0), noisy, mean, std


def where_noisy(values: Tensor, noisy: Tensor, otherwise: float) -> Tensor:
    """Return values of steps with noise, and another value of those without."""
    return torch.where(noisy.view(*noisy.shape, *(1,) * (values.ndim - noisy.ndim)), values, otherwise)


class _SameEvaluations:
    """A denoiser that gives its predictions once more, in order, when ``again`` is set."""

    def __init__(self, denoise: Denoise):
        self._denoise = denoise
        self._known: list[Prediction] = []
        self.again = False

    def __call__(self, x: Tensor, level: Level, to: Level | None = None, **named: Any) -> Prediction:
        if self.again:
            return self._known.pop(0)
        self._known.append(self._denoise(x, level, to, **named))
        return self._known[-1]


def _for_float64(model: Model, dtype: torch.dtype) -> Model:
    """A network whose precision is unknown, given data as in the rollout; others are cast by the denoiser."""
    if precision_of(model) is not None:
        return model
    return lambda x, time, **given: model(x.to(dtype), time.to(dtype), **given)


def _in_float64(tensor: Tensor) -> Tensor:
    """A copy that autograd can record."""
    return tensor.to(torch.float64, copy=True)


def _checked_step(i: int, count: int) -> int:
    return check_integer("each of steps", i, ge=0, lt=count)
