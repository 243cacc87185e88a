"""What a step of each sampler costs: evaluations of the network and tensor operations, held to the number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from solver_support import VP, part, points, sampling_program, system_on
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit.protocols import Prediction
from diffkit.registry import registry

VIEWS = {"view", "unbind", "select", "slice", "split_with_sizes", "expand", "narrow", "detach", "alias", "_unsafe_view"}

COST = {
    "ancestral": (1, 5),
    "churn": (2, 6),
    "ddim": (1, 2),
    "deis": (1, 6),
    "dpm2": (2, 6),
    "dpm2_ancestral": (2, 7),
    "dpm_solver_1": (1, 2),
    "dpm_solver_2": (2, 6),
    "dpm_solver_3": (3, 11),
    "dpmpp_2m": (1, 3),
    "dpmpp_2s": (2, 6),
    "dpmpp_2s_ancestral": (2, 7),
    "dpmpp_3m": (1, 4),
    "dpmpp_sde": (2, 20),
    "euler": (1, 2),
    "euler_ancestral": (1, 3),
    "heun": (2, 4),
    "lms": (1, 6),
    "pndm": (1, 7),
    "predictor_corrector": (2, 5),
    "restart": (2, 6),
    "rk4": (4, 13),
    "sa_solver": (1, 6),
    "sde_dpmpp_2m": (1, 4),
    "sde_dpmpp_3m": (1, 5),
    "unipc": (1, 4),
}
"""Sampler -> evaluations and operations of one step that is not the last. A learned variance costs three more."""
MOVES = {"dpmpp_sde": 2}
"""Moves of the route that make a step, where it is more than one."""


class Counter(TorchDispatchMode):
    """Counts operations that do work; views are free."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name.split("::")[1] not in VIEWS
        return function(*args, **(kwargs or {}))


def cost(sampler, moves=1):
    system = system_on(VP, 9)
    program = sampling_program(system.parts, part(sampler), system.table)
    x = points(system.table)
    estimate, log_variance, asked = torch.zeros_like(x), torch.zeros(1, dtype=x.dtype), []
    rows = program.columns.on(x.device, x.dtype)[4 : 4 + moves]
    state, noise = part(sampler).init(x), torch.zeros_like(x) if part(sampler).stochastic else None

    def denoise(x, level):
        asked.append(level)
        return Prediction(estimate, log_variance)

    with Counter() as counter:
        for row in rows:
            x, state = program.step(denoise, x, state, row, noise, False)
    return len(asked), counter.count


def test_every_sampler_is_listed():
    assert sorted(COST) == list(registry("sampler").built_in_names())


@pytest.mark.parametrize("name", COST)
def test_evaluations_and_operations_of_a_step(name):
    assert cost(name, MOVES.get(name, 1)) == COST[name]


@pytest.mark.parametrize(
    "name", ["euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "sde_dpmpp_2m", "sde_dpmpp_3m"]
)
def test_a_learned_variance_costs_three_operations(name):
    evaluations, operations = COST[name]
    assert cost((name, {"variance": "learned"})) == (evaluations, operations + 3)


@pytest.mark.parametrize("name", COST)
def test_evaluations_of_a_whole_run(name):
    """Samplers with two or three evaluations a step take one on the last."""
    system = system_on(VP, 9)
    program = sampling_program(system.parts, part(name), system.table)
    asked = []

    def denoise(x, level):
        asked.append(level)
        return Prediction(x * 0, torch.zeros((), dtype=x.dtype))

    x = points(system.table)
    program.finish(denoise, x, lambda: torch.zeros_like(x))
    per_step = COST[name][0] // MOVES.get(name, 1)
    assert len(asked) == per_step * (program.num_steps - 1) + 1


def test_the_documented_table():
    """docs/samplers.md: order, noise, evaluations and operations of every sampler."""
    text = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (yes|no) \| (\d) \| (\d) \| (\d+) \|$", text, re.MULTILINE)
    found = {name: (noise == "yes", int(order), int(asked), int(work)) for name, noise, order, asked, work in rows}
    assert found == {name: (part(name).stochastic, part(name).order, *COST[name]) for name in COST}
