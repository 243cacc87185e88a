"""torch's own wrappers take a system as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from networks import Tiny

import diffkit
from diffkit.errors import OptionError


def make() -> diffkit.System:
    torch.manual_seed(0)
    return diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", data_shape=(3, 8, 8), num_steps=10, backbone=Tiny(3, 6)
    )


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    module(x, generator=torch.Generator().manual_seed(2))["loss"].mean().backward()
    return [full(p.grad) for p in module.parameters()]


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's own, on a CPU
def test_ddp_takes_a_system(one_process):
    from torch.nn.parallel import DistributedDataParallel

    for got, want in zip(gradients(DistributedDataParallel(make())), gradients(make()), strict=True):
        assert torch.equal(got, want)


@pytest.mark.skipif(torch.__version__.split(".")[:2] == ["2", "6"], reason="FSDP2 of torch 2.6 does not run on a CPU")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_fsdp2_takes_a_system(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = make()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    for got, want in zip(gradients(sharded), gradients(make()), strict=True):
        assert torch.equal(got, want)


def test_a_system_can_be_copied_moved_and_pickled(tmp_path):
    system = make()
    other = copy.deepcopy(system)
    assert other.spec()["parts"]["loss"] == system.spec()["parts"]["loss"]
    assert torch.equal(other.sample(1, seed=0, progress=False), system.to("cpu").sample(1, seed=0, progress=False))
    other.network.shift.data += 1
    assert not torch.equal(other.network.shift, system.network.shift)


# ---- a wrapped network -----------------------------------------------------------------------------------------------

WRAPPERS = {
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "parallel": torch.nn.DataParallel,
    "both": lambda network: torch.nn.DataParallel(torch.compile(network, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_a_wrapped_network_is_saved_under_its_own_names(wrap, tmp_path):
    system = make()
    wanted = {name: value.clone() for name, value in system.network.state_dict().items()}
    system.network = wrap(system.network)
    found = diffkit.load(system.save(tmp_path / "saved"), backbone=Tiny(3, 6))
    assert all(torch.equal(value, wanted[name]) for name, value in found.network.state_dict().items())
    again = diffkit.load(tmp_path / "saved", backbone=wrap(Tiny(3, 6)))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), system.parameters(), strict=True))
    assert again.spec()["parts"]["backbone"] == {"name": None, "class": "Tiny"}


def test_training_wraps_networks_itself(tmp_path):
    system = make()
    system.network = torch.compile(system.network, backend="eager")
    with pytest.raises(OptionError, match=r"network is wrapped in OptimizedModule.*leave it out.*compile=True"):
        diffkit.train(system, torch.zeros(8, 3, 8, 8), out=tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()
