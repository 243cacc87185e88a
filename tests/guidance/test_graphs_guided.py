"""Guidance without host reads, in one compiled graph, at no cost when it is not used."""

from __future__ import annotations

import pytest
import torch
from guidance_support import Labelled, system_of
from torch._subclasses.fake_tensor import FakeTensorMode

from diffkit.guidance import (
    DPS,
    MMPS,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    DiffPIR,
    DynamicThreshold,
    GradientGuidance,
    PiGDM,
    StaticThreshold,
)
from diffkit.system.call_parts import parts_for
from diffkit.system.guidance import networks_of, own_conditions
from diffkit.system.sampling import sampling_program, take_step
from diffkit.tasks import average_pool

Y = torch.tensor([0, 1, 2])


def log_prob(x, time, conditions):
    return -(x.square().flatten(1).sum(1) * (1 + time / 1000))


def classifier(x, time):
    return torch.stack([x.flatten(1).sum(1), x.square().flatten(1).sum(1), time / 1000], 1)


GUIDANCE = {
    "cfg": lambda: [ClassifierFree(2.0, null={"y": 3})],
    "cfg_two_calls": lambda: [ClassifierFree(2.0, null={"y": 3}, joint=False)],
    "cfg_interval_rescale": lambda: [
        ClassifierFree(torch.tensor([2.0, 3.0, 5.0]), (0.3, 5.0), rescale=0.7, null={"y": 3}, by_level="linear")
    ],
    "cfg_threshold": lambda: [ClassifierFree(2.0, null={"y": 3}), DynamicThreshold(0.9), StaticThreshold()],
    "autoguidance": lambda: [Autoguidance(Labelled(3, 2).eval(), 2.0, by_level="0.1:0,1:1,9:0")],
    "classifier": lambda: [ClassifierGuidance(classifier, 2.0, by_level=torch.sigmoid)],
    "mean_shift": lambda: [GradientGuidance(log_prob, 2.0, at="mean", shift="mean")],
    "all": lambda: [
        ClassifierFree(2.0, null={"y": 3}),
        Autoguidance(Labelled(3, 2).eval(), 2.0),
        GradientGuidance(log_prob),
    ],
    "mmps": lambda: [ClassifierFree(2.0, null={"y": 3}), MMPS(average_pool(2), 0.1, iterations=2)],
    "pigdm": lambda: [PiGDM(average_pool(2), 0.1)],
    "diffpir": lambda: [DiffPIR(average_pool(2), 0.1)],
    "dps": lambda: [DPS(average_pool(2), 0.3)],
    "dps_likelihood": lambda: [DPS(average_pool(2), form="likelihood", noise_std=0.3)],
}


@pytest.fixture(params=GUIDANCE)
def guided(request):
    system, guidance = system_of(), GUIDANCE[request.param]()
    parts = parts_for(system.parts, "ancestral", guidance)
    system.network.calls = _Nowhere()
    for network in networks_of(guidance):
        network.calls = _Nowhere()
    given = dict.fromkeys(own_conditions(guidance[-1:]) & {"measurement"}, torch.rand(3, 3, 2, 2))
    return (
        system,
        system.denoiser(guidance=guidance, y=Y, **given),
        lambda n: sampling_program(parts, parts.sampler, system.table_for(n)),
    )


class _Nowhere(list):
    def append(self, item):
        pass


def test_it_runs_on_fake_tensors(guided):
    """Reading a value or branching on a tensor raises in this mode."""
    _, denoiser, program_for = guided
    program = program_for(4)
    program.columns.on(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(3, 3, 4, 4)
        assert program.finish(denoiser, x, lambda: torch.zeros(3, 3, 4, 4)).shape == x.shape


def test_one_graph_serves_every_step_and_every_number_of_steps(guided):
    _, denoiser, program_for = guided
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda program, x, row, noise: program.step(denoiser, x, (), row, noise, False)[0],
        backend=backend,
        fullgraph=True,
    )
    with torch.no_grad():
        for steps in (3, 5):
            program = program_for(steps)
            x = torch.randn(3, 3, 4, 4)
            for row in program.columns.on(x.device):
                noise = torch.randn_like(x)
                plain = program.step(denoiser, x, (), row, noise, False)[0]
                torch.testing.assert_close(compiled(program, x, row, noise), plain, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    assert len(graphs) == 1


def test_the_strength_may_change_without_a_graph_each():
    """Python numbers that vary become inputs of the graph."""
    system, graphs = system_of(), []
    system.network.calls = _Nowhere()
    program = sampling_program(system.parts, system.parts.sampler, system.table)
    x, row = torch.randn(3, 3, 4, 4), program.columns.on(torch.device("cpu"))[3]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda denoiser: take_step(program, denoiser, x, (), row, x, False)[0], backend=backend)
    with torch.no_grad():
        for scale in (1.5, 2.0, 3.0, 4.5, 7.5):
            denoiser = system.denoiser(guidance=ClassifierFree(scale, null={"y": 3}), y=Y)
            torch.testing.assert_close(compiled(denoiser), program.step(denoiser, x, (), row, x, False)[0])
    torch._dynamo.reset()
    assert len(graphs) <= 2
