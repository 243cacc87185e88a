"""Engine of several processes by Hugging Face accelerate, for devices and launchers that torchrun does not support.

accelerate reads its own configuration and environment; if that does not give the requested number of replicas on this
kind of device, an error is raised. Its data loaders, optimizers, precision and checkpoints are not used.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffkit.errors import MissingExtraError, OptionError
from diffkit.runtime.distributed import Ranks
from diffkit.training.engines.protocol import Network
from diffkit.training.engines.replicated import MultiProcess, disconnect_ddp


class Accelerated(MultiProcess):
    """Engine of replicas that accelerate wraps.

    Raises:
        MissingExtraError: accelerate is not installed.
        OptionError: It set up other processes, another device or another kind of parallelism than requested.
    """

    name = "accelerate"

    def __init__(self, device: torch.device, ranks: Ranks):
        try:
            from accelerate import Accelerator  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as error:
            raise MissingExtraError("accelerate", "engine='accelerate'") from error
        super().__init__(device, ranks)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        _raise_if_different(self._differences())

    def wrap(self, network: nn.Module) -> Network:
        """Return the network as accelerate wraps it, which must be in DDP if there are several processes."""
        self.model = self.accelerator.prepare_model(network)
        expected = DistributedDataParallel if self.ranks.size > 1 else type(network)
        if type(self.model) is not expected:
            _raise_if_different([f"it wrapped the network in {type(self.model).__name__}, not {expected.__name__}"])
        model: Network = self.model
        return model

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context that defers the exchange of gradients until the last microbatch."""
        context: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.model)
        return context

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DDP averages them over processes, and the factor turns the average into a sum."""
        self.accelerator.backward(loss * self.ranks.size)

    def close(self) -> None:
        """Release the wrapped network."""
        disconnect_ddp(self.__dict__.pop("model", None))
        self.accelerator.free_memory()

    def _differences(self) -> list[str]:
        found, ranks = self.accelerator, self.ranks
        pairs = [
            ("processes", found.num_processes, ranks.size),
            ("process number", found.process_index, ranks.rank),
            ("device", found.device.type, self.device.type),
            ("mixed_precision", found.mixed_precision, "no"),
            ("gradient_accumulation_steps", found.gradient_accumulation_steps, 1),
        ]
        return [f"{name}: {got!r}, not {expected!r}" for name, got, expected in pairs if got != expected]


def _raise_if_different(differences: list[str]) -> None:
    if differences:
        raise OptionError(
            "\n  ".join(["accelerate set up something other than requested:", *differences])
            + "\nlook at its configuration (accelerate env), or leave engine out"
        )
