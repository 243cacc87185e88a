"""Counts, not times: operations, host reads, compiled graphs."""

from __future__ import annotations

import pytest
import torch
from networks import Tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import diffkit
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import sampling_program

VIEWS = {"view", "unbind", "select", "slice", "split_with_sizes", "expand", "narrow", "detach", "alias", "_unsafe_view"}
SAMPLERS = [
    ("ancestral", "fixed_large"),
    ("ancestral", "learned_range"),
    ("ddim", "learned_range"),
    (("ddim", {"eta": 1.0}), "fixed_small"),
]
LOSSES = [("simple", "fixed_large"), ("hybrid", "learned_range"), ("vlb", "learned"), ("vlb", "fixed_small")]


class Counter(TorchDispatchMode):
    """Counts operations that do work; views are free."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name.split("::")[1] not in VIEWS
        return function(*args, **(kwargs or {}))


def make(var="learned_range", loss="vlb", **more):
    return diffkit.compose(schedule="cosine", var=var, loss=loss, backbone=None, data_shape=(3, 8, 8), **more)


def null_model(system, batch=2):
    out = torch.zeros(batch, 3 * (1 + system.parts.var.extra_outputs), 8, 8)
    return lambda x, time: out


@pytest.mark.parametrize(("sampler", "var"), SAMPLERS)
def test_operations_of_a_sampling_step(sampler, var):
    system = make(var)

    def count(steps):
        with Counter() as counter:
            system.sample(2, steps=steps, sampler=sampler, model=null_model(system), progress=False)
        return counter.count

    per_step = (count(20) - count(10)) / 10
    assert per_step <= (12 if sampler == "ancestral" else 8)


def test_a_whole_step_with_one_level_for_all_rows_reads_one_row():
    system = make()
    program = sampling_program(system.parts, system.parts.sampler, system.table_for(5))
    assert program.columns.on(torch.device("cpu")).shape[0] == 5


@pytest.mark.parametrize(("sampler", "var"), SAMPLERS)
def test_sampling_runs_on_fake_tensors(sampler, var):
    """Reading a value or branching on a tensor raises in this mode."""
    system = make(var)
    chosen = parts_for(system.parts, sampler).sampler
    program = sampling_program(system.parts, chosen, system.table_for(4))
    program.columns.on(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(2, 3, 8, 8)
        model = null_model(system)
        for moment in program.run(system.denoiser(model), x, lambda: torch.zeros(2, 3, 8, 8)):
            assert moment.x.shape == x.shape


@pytest.mark.parametrize(("loss", "var"), LOSSES)
@pytest.mark.parametrize("rows", [None, 0, 1])
def test_losses_run_on_fake_tensors(loss, var, rows):
    system = make(var, loss)
    system.objective.columns.on(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, level = torch.zeros(2, 3, 8, 8), torch.ones(2, dtype=torch.int64)
        terms = system.loss_terms(null_model(system), x, level, torch.zeros(2, 3, 8, 8), decoder_rows=rows)
        assert all(v.shape == (2,) for v in terms.values())


@pytest.mark.parametrize("name", ["uniform", "loss_second_moment"])
def test_timestep_samplers_run_on_fake_tensors(name):
    system = make(timesteps=name)
    sampler = system.parts.timesteps
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = sampler.init(system.table)
        t, weight = sampler.sample(state, torch.zeros(4, dtype=torch.float64), 1000)
        sampler.update(state, t, torch.zeros(4))
    assert t.shape == weight.shape == (4,)


@pytest.fixture
def graphs():
    """A compile backend that counts the graphs it is given."""
    torch._dynamo.reset()
    found: list[int] = []

    def backend(graph, inputs):
        found.append(1)
        return graph.forward

    yield found, backend
    torch._dynamo.reset()


@pytest.mark.parametrize(("sampler", "var"), SAMPLERS)
def test_one_graph_serves_every_step_and_every_number_of_steps(graphs, sampler, var):
    found, backend = graphs
    system = make(var)
    chosen = parts_for(system.parts, sampler).sampler
    denoiser = system.denoiser(null_model(system))

    def take(program, x, row, noise):
        return program.step(denoiser, x, (), row, noise, False)[0]

    compiled = torch.compile(take, backend=backend, fullgraph=True)
    for steps in (3, 7):
        program = sampling_program(system.parts, chosen, system.table_for(steps))
        x = torch.randn(2, 3, 8, 8)
        for row in program.columns.on(x.device):
            noise = torch.randn_like(x) if chosen.stochastic else None
            plain = program.step(denoiser, x, (), row, noise, False)[0]
            torch.testing.assert_close(compiled(program, x, row, noise), plain)
    assert len(found) == 1


@pytest.mark.parametrize(("loss", "var"), LOSSES)
def test_one_graph_for_a_training_loss(graphs, loss, var):
    found, backend = graphs
    system = make(var, loss)
    model = Tiny(3, 3 * (1 + system.parts.var.extra_outputs))
    compiled = torch.compile(
        lambda x, level, noise: system.loss_terms(model, x, level, noise), backend=backend, fullgraph=True
    )
    for _ in range(3):
        x, level, noise = torch.rand(4, 3, 8, 8), torch.randint(1, 1001, (4,)), torch.randn(4, 3, 8, 8)
        plain = system.loss_terms(model, x, level, noise)["loss"]
        torch.testing.assert_close(compiled(x, level, noise)["loss"], plain, rtol=1e-4, atol=1e-4)
    assert len(found) == 1


def test_a_compiled_system_trains(graphs):
    _, backend = graphs
    system = diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", data_shape=(3, 8, 8), backbone=Tiny(3, 6)
    )
    compiled = torch.compile(system, backend=backend)
    loss = compiled(torch.rand(4, 3, 8, 8))["loss"].mean()
    loss.backward()
    assert all(p.grad is not None for p in system.parameters())
