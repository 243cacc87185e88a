"""Properties of tensors and networks that are read without computing anything."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from diffkit.tensors import device_of, has_values, precision_of


class Buffered(nn.Module):
    """A network without parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scale", torch.ones(2, dtype=torch.float16))


def test_device_and_precision_are_those_of_parameters_or_else_of_buffers():
    assert (device_of(None), precision_of(None)) == (None, None)
    assert (device_of(nn.Identity()), precision_of(nn.Identity())) == (None, None)
    assert (device_of(Buffered()), precision_of(Buffered())) == (torch.device("cpu"), torch.float16)
    both = nn.ModuleList([Buffered(), nn.Linear(2, 2, device="meta")])
    assert (device_of(both), precision_of(both)) == (torch.device("meta"), torch.float32)


def test_values_are_there_on_the_host_outside_of_tracing():
    assert has_values(torch.ones(2)) and has_values(nn.Parameter(torch.ones(2)))
    assert not has_values(torch.ones(0)) and not has_values(torch.ones(2, device="meta"))
    with FakeTensorMode():
        assert not has_values(torch.ones(2))
    found = []

    def note(x):
        found.append(has_values(x))
        return x + 1

    torch.compile(lambda x: x if has_values(x) else x + 1, backend="eager", fullgraph=True)(torch.ones(2))
    torch.export.export(_Function(note), (torch.ones(2),))
    assert not any(found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_values_are_not_there_while_tracing():
    found = []

    def note(x):
        found.append(has_values(x))
        return x + 1

    torch.jit.trace(note, (torch.ones(2),), check_trace=False)
    assert found == [False]


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
