"""The operations of training that depend on devices and processes, for one process on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from diffkit.runtime.distributed import Ranks
from diffkit.training.checkpoint import Files
from diffkit.training.config import TrainConfig

Network = Callable[..., Tensor]


class Engine:
    """The operations that the training loop needs from devices, precisions and processes; here of a single process.

    Everything that DDP, FSDP2 or another library would do differently is a member; the loop has one code path. A batch
    of an update is cut into consecutive rows, one slice for each process; each process's slice into microbatches.

    Args:
        device: Where the network is.
        ranks: Which process this is, how many there are, and how they agree; one by default.
    Attributes:
        name: Its name, as logged by a run.
        replicates: Each process has all of the network and of its state.
        reads_free: Reading a tensor's value does not make the host wait for the device.
    """

    name = "single"
    replicates = True

    def __init__(self, device: torch.device, ranks: Ranks | None = None):
        self.device, self.ranks = device, ranks or Ranks()
        self.reads_free = device.type == "cpu"

    def rows(self, size: int) -> slice:
        """Return which of ``size`` examples this process works on: as many as any other process, or one more."""
        rank, of = self.ranks.rank, self.ranks.size
        return slice(size * rank // of, size * (rank + 1) // of)

    def seed(self, seed: int) -> None:
        """Seed the generators that dropout inside the network draws from; torch.manual_seed takes 20 times as long."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the module whose parameters are trained: the network, or what holds this process's share of it."""
        return network

    def wrap(self, network: nn.Module) -> Network:
        """Return what to call in place of the prepared network, so that its gradients are exchanged."""
        return network

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW over the prepared network's trained parameters; fused, which takes a third of the time."""
        return torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=config.lr,
            betas=(float(config.betas[0]), float(config.betas[1])),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one microbatch; gradients are exchanged in the last one only."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of a loss; those of all processes are summed, not averaged."""
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, network: nn.Module) -> Tensor:
        """Return the norm of all gradients, 0-d and the same in every process."""
        return get_total_norm(gradients(network))

    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite`` (0-d bool) and forget the gradients, with no host read on a GPU."""
        if not self.reads_free:
            # torch's own gradient scaler tells the fused kernel to do nothing in this way
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def gather(self, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return tensors of the rows of all processes, (size,), from those of this one's `rows`."""
        return dict(tensors)

    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a parameter of the prepared network, or of what is held like it."""
        return tensor

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a whole tensor, sharded and placed as ``like`` is."""
        return tensor

    def share(self, files: Files) -> Files:
        """Return the files that this process writes, of those that all hold; see `diffkit.training.sharded_files`."""
        return files if self.ranks.rank == 0 else {}

    def close(self) -> None:
        """Release everything that communicates with other processes, before the group is destroyed."""


def gradients(network: nn.Module) -> list[Tensor]:
    """Return the gradients that are there."""
    return [p.grad for p in network.parameters() if p.grad is not None]
