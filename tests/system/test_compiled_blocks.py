"""Networks compiled block by block."""

from __future__ import annotations

import copy

import pytest
import torch
from counting_backend import Backend
from torch import nn

import diffkit
from diffkit import OptionError
from diffkit.system.compiling import compile_blocks

# torch's compiler looks at the gradients of activations, and torch warns of it
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
UNET = ("unet", {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "num_heads": 2})
DIT = ("dit", {"hidden": 16, "depth": 3, "heads": 2, "patch": 2})


@pytest.fixture
def backend():
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    limit = getattr(config, name)
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()
    setattr(config, name, limit)


def network_of(backbone, side=8) -> nn.Module:
    network = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(3, side, side)).network
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize(("backbone", "graphs"), [(UNET, 3), (DIT, 1)], ids=["unet", "dit"])
def test_blocks_give_the_same_and_keep_their_names(backend, backbone, graphs):
    """Like blocks share a graph."""
    network = network_of(backbone)
    plain = copy.deepcopy(network)
    assert compile_blocks(network, backend=backend) is network
    assert list(network.state_dict()) == list(plain.state_dict())
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(network(x, time), plain(x, time), rtol=1e-5, atol=1e-5)
    assert backend.graphs == graphs
    network(x, time)
    assert backend.graphs == graphs


def test_gradients_are_the_same(backend):
    network = network_of(DIT)
    plain, x, time = copy.deepcopy(network), torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    compile_blocks(network, backend=backend)
    for one in (network, plain):
        one(x, time).square().mean().backward()
    for mine, wanted in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_u_net_of_several_resolutions_trains():
    """With torch's own compiler, whose shapes of unknown size fail where a backend that only counts does not."""
    recipe = ("unet", {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4, "num_heads": 2})
    network = network_of(recipe, 16)
    plain, x, time = copy.deepcopy(network), torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    compile_blocks(network)
    for one in (network, plain):
        one(x, time).square().mean().backward()
    for mine, wanted in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_every_block_is_compiled_however_many_there_are(backend):
    """Torch gives up after eight graphs of one piece of code, unless it is told that there will be more."""
    blocks = (1, 2, 3, 4, 5, 6)
    network = network_of(("unet", {"channels": 32, "channel_mult": blocks, "num_res_blocks": 1, "groups": 8}), 32)
    compile_blocks(network, backend=backend)
    network(torch.randn(1, 3, 32, 32), torch.tensor([3.0]))
    assert backend.graphs >= 3 * len(blocks)


def test_a_copy_is_not_compiled(backend):
    network = copy.deepcopy(compile_blocks(network_of(UNET), backend=backend))
    network(torch.randn(1, 3, 8, 8), torch.tensor([3.0]))
    assert backend.graphs == 0


def test_a_network_without_blocks_is_refused():
    with pytest.raises(OptionError, match=r"Linear has no blocks in an nn.ModuleList; compile the whole of it"):
        compile_blocks(nn.Linear(2, 2))
