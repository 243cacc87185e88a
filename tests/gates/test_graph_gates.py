"""How many graphs a compiled walk takes, whatever the number of steps and the batch, and mutants that take more."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from counting_backend import Backend
from lanes import some_by_default
from torch import nn

import diffkit
from diffkit.protocols import Sampler
from diffkit.registry import registry

# torch's compiler looks at the gradients of activations, and torch warns of it
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
SHAPE = (3, 4, 4)
CALLS = ((4, 3), (4, 7), (6, 5), (2, 9))
"""(batch, steps) of calls that share a graph."""


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, time):
        return x * self.scale


class Reading(Plain):
    """Looks at a value, which breaks a graph in two."""

    def forward(self, x, time):
        return super().forward(x, time) * (2 if float(x.sum()) > 0 else 1)


class Sizing(Plain):
    """Does as much work as the batch is large, so that every batch is a graph of its own."""

    def forward(self, x, time):
        for _ in range(len(x)):
            x = x * 1
        return super().forward(x, time)


EULER = registry("sampler").create("euler")


@frozen
class Counting(Sampler):
    """Does something else in every number of steps: its plan has a column for each."""

    order = 1

    def plan(self, steps):
        plan = EULER.plan(steps)
        return plan | {f"unused_{i}": plan["x"] for i in range(len(plan["x"]))}

    def step(self, denoise, x, state, row, noise, last):
        return EULER.step(denoise, x, state, row, noise, last)


def graphs(sampler="ddim", network: type[Plain] = Plain, **options) -> int:
    """Graphs that all of `CALLS` take together."""
    torch._dynamo.reset()
    backend = Backend()
    system = diffkit.compose(schedule="cosine", backbone=network(), data_shape=SHAPE, num_steps=40).eval()
    for batch, steps in CALLS:
        how = {"backend": backend, **options}
        system.sample(batch, steps=steps, sampler=sampler, compile=how, progress=False)
    torch._dynamo.reset()
    return backend.graphs


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "euler", "dpmpp_2m"])
def test_steps_and_batches_share_one_graph(sampler):
    assert graphs(sampler) == 1


@pytest.mark.parametrize("sampler", some_by_default(["ancestral", "ddim", "heun"], 3))
def test_a_broken_graph_is_refused_unless_asked_for(sampler):
    with pytest.raises(diffkit.OptionError, match="cannot capture this step as one graph"):
        graphs(sampler, Reading)
    assert graphs(sampler, Reading, fullgraph=False) > 1


def test_a_graph_for_every_batch_is_caught():
    assert graphs(network=Sizing) > 1


def test_a_graph_for_every_number_of_steps_is_caught():
    assert graphs(Counting()) > 1
