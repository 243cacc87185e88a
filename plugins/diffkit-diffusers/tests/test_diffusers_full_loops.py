"""The numbers of diffusers' own tests (see `diffusers_full_loops`), through diffkit."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffkit_diffusers import from_scheduler_config
from diffusers_full_loops import BASES, LOOPS, Loop
from torch import Tensor

import diffkit
from diffkit.protocols import Level, Prediction
from diffkit.system.sampling import sampling_program
from diffkit.table import ProcessTable, respace

SCALED = ("Euler", "Heun", "LMS", "KDPM2", "EDM")
"""Classes whose states are x / alpha."""


def dummy_model(sample: Tensor, t: Tensor) -> Tensor:
    t = t.to(sample.dtype).view(-1, *(1,) * (sample.ndim - 1))
    return sample * t / (t + 1)


def dummies(loop: Loop) -> tuple[Tensor, Tensor]:
    """dummy_sample_deter and dummy_noise_deter."""
    shape = (4, 3, 8) if loop.name.startswith("unipc_1d") else (4, 3, 8, 8)
    count = math.prod(shape)
    rising = torch.arange(count, dtype=torch.float64)
    return tuple(
        (values.reshape(*shape[1:], 4) / count).permute(-1, *range(len(shape) - 1))
        for values in (rising, rising.flip(0))
    )  # type: ignore[return-value]


def start_of(loop: Loop, table: Any, first: float) -> Tensor:
    """What a loop begins with, where noise and signal have variance 1 in all: data at the top of a table.

    Args:
        first: sigma / alpha that the whole chain begins with.
    """
    sample, noise = dummies(loop)
    alpha, sigma = float(table.alpha[-1]), float(table.sigma[-1])
    if loop.scheduler.startswith(SCALED):
        sample = sample * first
        return alpha * sample + (sigma * noise if loop.start else 0)
    return alpha * sample + sigma * noise if loop.start else sample


def through_diffkit(loop: Loop) -> Tensor:
    config = {"_class_name": loop.scheduler, **BASES[loop.scheduler], **loop.options}
    reading = from_scheduler_config(config)
    system = reading.compose(backbone=None, data_shape=dummies(loop)[0].shape[1:], bins=None)
    whole = system.table_for(reading.steps(loop.steps))
    table = respace(whole, range(1, whole.num_steps + 1 - loop.start))
    x = start_of(loop, table, float(whole.sigma[-1] / whole.alpha[-1]))
    generator = torch.manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator)

    if loop.scheduler.startswith(SCALED):
        # LMS takes the weights of its place in the whole chain, though it knows fewer estimates in the middle of it
        begins = 0 if loop.scheduler != "LMSDiscreteScheduler" else loop.start
        return scaled_twice(system, x, noise, whole if begins else table, begins)
    return system.sample_from(dummy_model, x, noise, table, guidance=reading.guidance)


def scaled_twice(system: diffkit.System, x: Tensor, noise_fn: Any, table: ProcessTable, begins: int) -> Tensor:
    """A loop whose state is what `scale_model_input` returned: these tests of diffusers overwrite it by that.

    An evaluation at x is one at alpha x then, for which the network is given x.
    """
    program = sampling_program(system.parts, system.parts.sampler, table)

    def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        inner = x if first.pop() else level.alpha * x
        found = system.denoiser(lambda y, time: dummy_model(y / level.alpha, time))(inner, level)
        eps = (inner - level.alpha * found.x_start) / level.sigma
        return found._replace(x_start=(x - level.sigma * eps) / level.alpha)

    state = program.sampler.init(x)
    for i, row in enumerate(program.columns.on(x.device, x.dtype)):
        if i < begins:
            continue
        first = [False, True]
        x = x * float(table.alpha[table.num_steps - i])
        noise = noise_fn() if program.sampler.stochastic else None
        x, state = program.step(denoise, x, state, row, noise, program.is_last(i))
    return x


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name.replace(" ", "-"))
def test_full_loops_of_diffusers(loop: Loop):
    found = through_diffkit(loop).abs()
    if loop.total is not None:
        assert float(found.sum()) == pytest.approx(loop.total, abs=loop.within[0])
    assert float(found.mean()) == pytest.approx(loop.mean, abs=loop.within[1])
