"""Engine of several processes, each with shards of weights, running means and moments: torch's FSDP2."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diffkit.errors import OptionError
from diffkit.system.learned import roots
from diffkit.training.checkpoint import Files
from diffkit.training.engines.engine import Network, Trained
from diffkit.training.engines.replicated import MultiProcess
from diffkit.training.sharded_files import shard_name


class Sharded(MultiProcess):
    """Engine by FSDP2: parameters are split along their first axis, and gathered block by block when they are needed.

    The system's own network is on the CPU during training, and receives the trained weights at the end.
    """

    name = "fsdp"
    replicates = False
    models: Sequence[FSDPModule] = ()

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return a sharded copy of the network, with the weights of rank 0."""
        _refuse_tied_weights(network)
        # the warning is about writing into a network's output, which nothing here does
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        sharded = copy.deepcopy(network)
        for tensor in [*sharded.parameters(), *sharded.buffers()]:
            torch.distributed.broadcast(tensor.data, src=0)
        network.cpu()
        for parameter in sharded.parameters():  # FSDP2 takes no other memory format
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))
        for root in roots(sharded):
            for block in sharding_blocks(root):
                fully_shard(block, mesh=mesh)
        # by default the outermost module stays gathered after a call, and would not see that its shards change
        self.models = [fully_shard(root, mesh=mesh, reshard_after_forward=True) for root in roots(sharded)]
        return sharded

    def wrap(self, network: nn.Module) -> Network:
        """Return the prepared network, which exchanges gradients by itself."""
        return network

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Defer the exchange of gradients until the last microbatch."""
        for model in self.models:
            model.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_norm(self, trained: Trained) -> Tensor:
        """Return the norm of all gradients, from those of every process."""
        return self.gather_full(super().gradient_norm(trained))

    def gather_full(self, tensor: Tensor) -> Tensor:
        """Return a tensor, put together from its shards."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def shard_like(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return this process's shard of a tensor that every process has; nothing is sent."""
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def share(self, files: Files) -> Files:
        """Return this process's shards of sharded tensors, and in rank 0 the other tensors too."""
        rank, size = self.ranks.rank, self.ranks.size
        local = {
            name: {key: _local(value) for key, value in tensors.items() if rank == 0 or isinstance(value, DTensor)}
            for name, tensors in files.items()
        }
        split = {name for name, tensors in files.items() if any(isinstance(v, DTensor) for v in tensors.values())}
        return {shard_name(name, rank, size) if name in split else name: part for name, part in local.items() if part}

    def close(self) -> None:
        """Release the sharded network and its reference cycles: if it outlives the connection, the exit may abort."""
        self.models = ()
        gc.collect()


def _refuse_tied_weights(network: nn.Module) -> None:
    """Raise if two modules share a parameter, which would belong to two FSDP2 blocks."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = [shared for shared in names.values() if len(shared) > 1]
    if tied:
        raise OptionError(f"parameters {' and '.join(tied[0])} are tied and cannot be sharded; use strategy='ddp'")


def sharding_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that FSDP2 gathers one at a time: the elements of the network's outermost module lists."""
    for child in network.children():
        # a list with a forward method of its own is a module like any other
        if isinstance(child, nn.ModuleList) and type(child).forward is nn.ModuleList.forward:
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from sharding_blocks(child)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
