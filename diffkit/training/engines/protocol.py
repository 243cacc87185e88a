"""Protocol of an engine: the interface between the training loop and devices and processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffkit.runtime.distributed import Ranks
from diffkit.training.config import TrainConfig

Network = Callable[..., Tensor]
Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the file they are in (without the suffix)."""


class Engine(Protocol):
    """Protocol of an engine: the operations that the training loop needs from devices and processes.

    Everything that differs between DDP, FSDP2 and other libraries is a member, so the loop has one code path. The batch
    of an update is cut into consecutive slices, one for each process, and each process's slice into microbatches.

    Attributes:
        name: Its name, which checkpoints record.
        ranks: The processes that train together.
        device: Where the network is.
        replicates: Whether each process has all of the weights and of the optimizer's state.
        reads_free: Whether the value of a tensor can be read without the host waiting for a device, as on a CPU.
    """

    name: str
    ranks: Ranks
    device: torch.device
    replicates: bool
    reads_free: bool

    @abstractmethod
    def local_slice(self, size: int) -> slice:
        """Return this process's slice of a batch of ``size`` examples."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generators that dropout inside the network draws from."""

    @abstractmethod
    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the module whose parameters are trained: the network, or one with this process's shards of it."""

    @abstractmethod
    def wrap(self, network: nn.Module) -> Network:
        """Return the callable to use instead of the prepared network, so that gradients are exchanged."""

    @abstractmethod
    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW over the prepared network's trained parameters."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one microbatch, in which gradients are exchanged only if it is the last."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of a loss; those of all processes are summed, not averaged."""

    @abstractmethod
    def gradient_norm(self, network: nn.Module) -> Tensor:
        """Return the norm of all gradients, 0-d and the same in every process."""

    @abstractmethod
    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite`` (0-d bool), and drop the gradients, without a host read on a GPU."""

    @abstractmethod
    def gather(self, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return tensors of the whole batch, (size,), from those of this process's `local_slice`."""

    @abstractmethod
    def gather_full(self, tensor: Tensor) -> Tensor:
        """Return a parameter of the prepared network, or a tensor sharded like one, put together from its shards."""

    @abstractmethod
    def shard_like(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a full tensor, sharded as ``like`` is and on its device."""

    @abstractmethod
    def share(self, files: Files) -> Files:
        """Return the checkpoint files that this process writes; see `diffkit.training.sharded_files`."""

    @abstractmethod
    def close(self) -> None:
        """Release everything that communicates with other processes, before the process group is destroyed."""
