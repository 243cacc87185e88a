"""Where training runs: the one seam between the training loop and devices, precisions and processes.

Everything a launcher, DDP, FSDP2 or another library would do differently is a member here; the loop has one code path.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffkit._errors import OptionError
from diffkit.training.config import TrainConfig

Network = Callable[..., Tensor]


class Engine(Protocol):
    """What the training loop asks of the machinery below it.

    Attributes:
        rank, world_size: Which process this is, and how many there are.
        device: Where the network is.
        reads_free: Reading a tensor's value does not make the host wait for the device.
    """

    rank: int
    world_size: int
    device: torch.device
    reads_free: bool

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generators that dropout inside the network draws from."""

    @abstractmethod
    def wrap(self, network: nn.Module) -> Network:
        """Return what to call in place of the network, so that precision and gradient exchange are taken care of."""

    @abstractmethod
    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW over the network's trained parameters."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one microbatch; gradients are exchanged in the last one only."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those already there."""

    @abstractmethod
    def clip(self, network: nn.Module, max_norm: float | None) -> Tensor:
        """Return the norm of all gradients, 0-d; scale them down to ``max_norm`` if they are larger."""

    @abstractmethod
    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite`` (0-d bool) and forget the gradients, with no host read on a GPU."""

    @abstractmethod
    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, in order of rank."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""


class SingleProcess(Engine):
    """One process on one device."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device, precision: str):
        self.device = device
        self.reads_free = device.type == "cpu"
        self.precision = precision
        # On a GPU the step is skipped inside the fused kernel, told by a scaler whose scale stays 1.
        self._scaler = None if self.reads_free else torch.amp.GradScaler(device.type, init_scale=1.0)

    def seed(self, seed: int) -> None:
        """Seed the generators of the CPU and of the device; torch.manual_seed takes 20 times as long."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def wrap(self, network: nn.Module) -> Network:
        """Return the network, under autocast if the precision asks for it; its callers compute in float32."""
        if self.precision == "fp32":
            return network

        def call(*args: Any, **conditions: Any) -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                out: Tensor = network(*args, **conditions)
            return out

        return call

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW; fused, which takes a third of the time on a CPU too."""
        return torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing to hold back."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those already there."""
        loss = loss if self._scaler is None else self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, network: nn.Module, max_norm: float | None) -> Tensor:
        """Return the norm of all gradients, 0-d; scale them down if they are larger than ``max_norm``."""
        parameters = [p for p in network.parameters() if p.grad is not None]
        norm = get_total_norm(_gradients(parameters))
        if max_norm is not None:
            clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def apply(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take an optimizer step if ``finite``, and forget the gradients."""
        if self._scaler is not None:
            self._scaler.step(optimizer)
            self._scaler.update(1.0)
        elif finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of the one process."""
        return tensor

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag


def engine_for(device: torch.device, precision: str) -> Engine:
    """Return the engine for what this process was launched as.

    Raises:
        OptionError: A launcher started several processes, which would each train alone, unaware of the others.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise OptionError(
            f"WORLD_SIZE={world} says that {world} processes were launched, and each would train alone; "
            "start a single one"
        )
    return SingleProcess(device, precision)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
