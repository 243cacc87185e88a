"""Engine of one process on one device: the operations of training that depend on devices and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from diffkit.runtime.distributed import Ranks
from diffkit.training.checkpoint import Files
from diffkit.training.config import TrainConfig
from diffkit.training.optimizer_building import build_optimizer
from diffkit.training.without_dynamo import take_step

Network = Callable[..., Tensor]
Trained = Sequence[tuple[str, Tensor]]
"""Names and parameters that are trained, listed once, as a walk over a network's modules takes long."""


class Engine:
    """Engine of one process: the operations that the training loop needs from devices, precisions and processes.

    Everything that differs between DDP, FSDP2 and other libraries is a member, so the loop has one code path. The batch
    of an update is cut into consecutive slices, one for each process, and each process's slice into microbatches.

    Args:
        device: Where the network is.
        ranks: The processes that train together; one by default.
    Attributes:
        name: Its name, as logged by a run.
        replicates: Whether each process has all of the weights and of the optimizer's state.
        reads_free: Whether the value of a tensor can be read without the host waiting for a device, as on a CPU.
    """

    name = "single"
    replicates = True

    def __init__(self, device: torch.device, ranks: Ranks | None = None):
        self.device, self.ranks = device, ranks or Ranks()
        self.reads_free = device.type == "cpu"

    def local_slice(self, size: int, rank: int | None = None) -> slice:
        """Return a rank's slice of ``size`` examples, by default this one's: as many as any other, or one more."""
        rank, of = self.ranks.rank if rank is None else rank, self.ranks.size
        return slice(size * rank // of, size * (rank + 1) // of)

    def seed(self, seed: int) -> None:
        """Seed the generators that dropout inside the network draws from; torch.manual_seed takes 20 times as long."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the module whose parameters are trained: the network, or one with this process's shards of it."""
        return network

    def wrap(self, network: nn.Module) -> Network:
        """Return the callable to use instead of the prepared network, so that gradients are exchanged."""
        return network

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return the optimizer of the prepared network's trained parameters."""
        return build_optimizer(network, config)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one microbatch, in which gradients are exchanged only if it is the last."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of a loss; those of all processes are summed, not averaged."""
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, trained: Trained) -> Tensor:
        """Return the norm of all gradients, 0-d and the same in every process."""
        found = gradients(trained)
        if found and len({(each.device, each.dtype) for each in found}) == 1:  # as get_total_norm, which sorts them
            norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found, 2.0)), 2.0)
            return norm
        return get_total_norm(found)

    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite`` (0-d bool).

        On a GPU the value is not read if the optimizer can skip its own step, as fused ones can.
        """
        if not self.reads_free and getattr(optimizer, "_step_supports_amp_scaling", False):
            # the attribute by which torch's GradScaler makes the fused kernel do nothing
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            take_step(optimizer)
        elif finite:
            take_step(optimizer)

    def gather(self, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return tensors of the whole batch, (size, ...), from those of this process's `local_slice`."""
        return dict(tensors)

    def gather_full(self, tensor: Tensor) -> Tensor:
        """Return a parameter of the prepared network, or a tensor sharded like one, put together from its shards."""
        return tensor

    def shard_like(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a full tensor, sharded as ``like`` is and on its device."""
        return tensor

    def share(self, files: Files) -> Files:
        """Return the checkpoint files that this process writes; see `diffkit.training.sharded_files`."""
        return files if self.ranks.rank == 0 else {}

    def close(self) -> None:
        """Release everything that communicates with other processes, before the process group is destroyed."""


def drop_gradients(trained: Trained) -> None:
    """Drop the gradients of the trained parameters, without the bookkeeping of `Optimizer.zero_grad`."""
    for _, p in trained:
        p.grad = None


def gradients(trained: Trained) -> list[Tensor]:
    """Return the gradients of the trained parameters that have one."""
    return [p.grad for _, p in trained if p.grad is not None]
