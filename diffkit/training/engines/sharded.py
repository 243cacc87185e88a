"""Several processes, each with a share of the network's weights, means and moments: torch's FSDP2."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diffkit.errors import OptionError
from diffkit.training.checkpoint import Files
from diffkit.training.engines.engine import Network
from diffkit.training.engines.replicated import Processes
from diffkit.training.sharded_files import shard_name


class Sharded(Processes):
    """FSDP2: parameters are split along their first axis and put together block by block, when they are needed.

    The system's own network is on the CPU meanwhile, and receives the result at the end.
    """

    name = "fsdp"
    replicates = False
    model: FSDPModule

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network that holds a share of it, with the weights of rank 0."""
        _refuse_ties(network)
        # nothing here writes into a network's output
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        sharded = copy.deepcopy(network)
        for tensor in [*sharded.parameters(), *sharded.buffers()]:
            torch.distributed.broadcast(tensor.data, src=0)
        network.cpu()
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))
        for block in blocks(sharded):
            fully_shard(block, mesh=mesh)
        # by default the outermost stays whole after a call, and would not see that its shares changed meanwhile
        self.model = fully_shard(sharded, mesh=mesh, reshard_after_forward=True)
        return sharded

    def wrap(self, network: nn.Module) -> Network:
        """Return the prepared network, which exchanges by itself."""
        return network

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Hold gradients back until the last microbatch."""
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_norm(self, network: nn.Module) -> Tensor:
        """Return the norm of all gradients, put together from that of every process."""
        return self.whole(super().gradient_norm(network))

    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return this process's share of a tensor; nothing is sent, all of them have it."""
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def share(self, files: Files) -> Files:
        """Return this process's share of what is split, and in rank 0 what is not."""
        rank, size = self.ranks.rank, self.ranks.size
        mine = {
            name: {key: _local(value) for key, value in tensors.items() if rank == 0 or isinstance(value, DTensor)}
            for name, tensors in files.items()
        }
        split = {name for name, tensors in files.items() if any(isinstance(v, DTensor) for v in tensors.values())}
        return {shard_name(name, rank, size) if name in split else name: part for name, part in mine.items() if part}

    def close(self) -> None:
        """Release the sharded network, held in cycles by its hooks: outliving the connection it may abort at exit."""
        self.__dict__.pop("model", None)
        gc.collect()


def _refuse_ties(network: nn.Module) -> None:
    """Raise where two modules have one parameter: it would belong to two blocks."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = [shared for shared in names.values() if len(shared) > 1]
    if tied:
        raise OptionError(f"parameters {' and '.join(tied[0])} are one, which cannot be shared out; use strategy='ddp'")


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules to gather at a time: the elements of the network's outermost lists."""
    for child in network.children():
        # a list that is called like any module is a block's affair
        if isinstance(child, nn.ModuleList) and type(child).forward is nn.ModuleList.forward:
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
