"""Samples together with all that their steps used, for reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.protocols import State
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.conditions import as_tensor
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob


@frozen(eq=False)
class Rollout:
    """Samples, and what each step started from; made by `rollout`.

    Attributes:
        job: The call, with sampler, steps, guidance and conditions.
        x: Data, or latents, before each step and after the last, (steps + 1, B, C, *S).
        states: The sampler's state before each step.
        noise: Noise of each step, (steps, B, C, *S); None if the sampler is deterministic.
    """

    job: SamplingJob
    x: Tensor
    states: tuple[State, ...]
    noise: Tensor | None

    @property
    def samples(self) -> Tensor:
        """The samples, (B, C, *S): those of `System.sample` with the same arguments."""
        return self.job.from_latents(self.x[-1])

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.states)


@shows_options(JobOptions)
def rollout(
    system: System, n: int, *, start: Tensor | None = None, noise: Tensor | None = None, **options: Unpack[JobOptions]
) -> Rollout:
    """Sample n examples as `System.sample` does, and record x, state and noise of every step.

        path = rollout(system, 64, sampler=("ddim", {"eta": 1.0}), steps=20, seed=0)
        before = log_prob(path).values          # (steps, B), nats

    Args:
        system: The system.
        n: Number of examples.
        start: As in `System.sample`.
        noise: Noise of each step, (steps, n, C, *S), in place of that of the seed.
        options: Those of `diffkit.system.call_options.JobOptions`.
        conditions: As in `System.sample`.
    Raises:
        OptionError: An argument is wrong.
    """
    job = system.prepare(n, **options)
    start = job.checked_start(start)
    program, rows, drawn = job.program(), range(n), list[Tensor]()
    draw = _recorded(job.noise(rows), drawn)
    x = job.begin(rows, draw, start)
    if noise is not None:
        draw = _recorded(iter(_checked_noise(noise, (program.num_steps, *x.shape)).to(x)).__next__, drawn)
    drawn.clear()
    path, states = [x], [program.sampler.init(x)]
    step_fn = job.step_fn(program, job.denoiser(rows), x, with_denoised=True)
    with job.running("rollout", program.num_steps, False):
        for point in program.run(job.denoisers(program, rows), x, draw, step_fn):
            path.append(point.x)
            states.append(point.state)
    return Rollout(job, torch.stack(path), tuple(states[:-1]), torch.stack(drawn) if drawn else None)


def _checked_noise(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = as_tensor("noise", noise)
    if found.shape != shape:
        raise OptionError(f"noise must have shape {shape}, one for each step, got {tuple(found.shape)}")
    return found


def _recorded(draw: Callable[[], Tensor], drawn: list[Tensor]) -> Callable[[], Tensor]:
    def recorded() -> Tensor:
        drawn.append(draw())
        return drawn[-1]

    return recorded
