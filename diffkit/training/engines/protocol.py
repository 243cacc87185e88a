"""The interface between the training loop and devices, precisions and processes."""

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
    """The operations that the training loop needs from devices, precisions and processes.

    Everything that DDP, FSDP2 or another library would do differently is a member; the loop has one code path. A batch
    of an update is cut into consecutive rows, one slice for each process; each process's slice into microbatches.

    Attributes:
        name: Its name, as logged by a run.
        ranks: Which process this is, how many there are, and how they agree.
        device: Where the network is.
        replicates: Each process has all of the network and of its state.
        reads_free: Reading a tensor's value does not make the host wait for the device.
    """

    name: str
    ranks: Ranks
    device: torch.device
    replicates: bool
    reads_free: bool

    @abstractmethod
    def rows(self, size: int) -> slice:
        """Return which of ``size`` examples this process works on."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generators that dropout inside the network draws from."""

    @abstractmethod
    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the module whose parameters are trained: the network, or what holds this process's share of it."""

    @abstractmethod
    def wrap(self, network: nn.Module) -> Network:
        """Return what to call in place of the prepared network, so that its gradients are exchanged."""

    @abstractmethod
    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW over the prepared network's trained parameters."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one microbatch; gradients are exchanged in the last one only."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of a loss; those of all processes are summed, not averaged."""

    @abstractmethod
    def gradient_norm(self, network: nn.Module) -> Tensor:
        """Return the norm of all gradients, 0-d and the same in every process."""

    @abstractmethod
    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite`` (0-d bool) and forget the gradients, with no host read on a GPU."""

    @abstractmethod
    def gather(self, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return tensors of the rows of all processes, (size,), from those of this one's `rows`."""

    @abstractmethod
    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a parameter of the prepared network, or of what is held like it."""

    @abstractmethod
    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a whole tensor, sharded and placed as ``like`` is."""

    @abstractmethod
    def share(self, files: Files) -> Files:
        """Return the files that this process writes, of those that all hold; see `diffkit.training.sharded_files`."""

    @abstractmethod
    def close(self) -> None:
        """Release everything that communicates with other processes, before the group is destroyed."""
