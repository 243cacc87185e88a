"""Short numbers move samples little: a network in bfloat16 does, and steps in float32 still less."""

from __future__ import annotations

import math

import pytest
import torch
from lanes import some_by_default
from solver_support import GAUSSIAN, MIXTURE, SOLVERS, part, points, sampling_program, system_on

from diffkit.registry import registry
from diffkit.testing.oracles import network_of

EXAMPLES, STEPS = 256, 50


def drift(sampler, mean):
    """Root mean square distance of 50 steps with a bfloat16 network from the same in float64, same noise."""
    system = system_on("linear", 1000, mean=mean)
    exact, table = network_of(GAUSSIAN, system), system.table_for(f"linspace{STEPS}")

    def short(x, time):
        return exact(x.bfloat16().double(), time).bfloat16().to(x.dtype)

    def walk(model, dtype):
        generator = torch.Generator().manual_seed(0)
        noise = lambda: torch.randn(EXAMPLES, 1, dtype=torch.float64, generator=generator).to(dtype)  # noqa: E731
        start = noise()
        return system.sample_from(model, start, noise, table, sampler=sampler, clip=False).double()

    return float((walk(short, torch.float32) - walk(exact, torch.float64)).square().mean().sqrt())


@pytest.mark.parametrize("name", some_by_default(registry("sampler").built_in_names(), 4))
def test_a_bfloat16_network_drifts_little(name):
    """diffusers, on such a model: DDIM 1.0e-2, DPM-Solver++ 2M 9.9e-3, UniPC 1.6e-2, Heun 4.6e-2."""
    assert drift(name, "eps") <= 2e-3
    assert drift(name, "v") <= 2e-3


VE = ("log_linear", {"path": "ve", "log_snr_max": -2 * math.log(0.002), "log_snr_min": -2 * math.log(80.0)})


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps"),
    some_by_default(
        [
            (sampler, *case)
            for sampler in SOLVERS
            for case in [(VE, "karras100"), ("cosine", "linspace100"), ("linear", "linspace100")]
        ],
        3,
    ),
    ids=str,
)
def test_float32_steps_follow_float64(sampler, schedule, steps):
    """To 2e-5 of the data's scale, though x starts at 80 times that on the first path: coefficients cancel on paper."""
    system = system_on(schedule, 1000)
    program = sampling_program(system.parts, part(sampler), system.table_for(steps))
    x = points(system.table)
    in_double = program.finish(MIXTURE, x, None)
    torch.testing.assert_close(program.finish(MIXTURE, x.float(), None).double(), in_double, rtol=0, atol=2e-5)
