"""Several processes, brought together by Hugging Face accelerate: devices and launchers that it knows and torchrun not.

accelerate decides by its own configuration and environment; if the result is not the requested number of replicas on
this kind of device, training does not begin. Its data loaders, optimizers,
precision and checkpoints are not used.
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
from diffkit.training.engines.replicated import Processes, part_with


class Accelerated(Processes):
    """Replicas that accelerate wraps.

    Raises:
        MissingExtraError: accelerate is not installed.
        OptionError: It set up other processes, another device or another way to share the work than requested.
    """

    name = "accelerate"

    def __init__(self, device: torch.device, ranks: Ranks):
        try:
            from accelerate import Accelerator  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as error:
            raise MissingExtraError("accelerate", "engine='accelerate'") from error
        super().__init__(device, ranks)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        _refuse(self._differences())

    def wrap(self, network: nn.Module) -> Network:
        """Return the network as accelerate wraps it, which must be DDP where there are several processes."""
        self.model = self.accelerator.prepare_model(network)
        wanted = DistributedDataParallel if self.ranks.size > 1 else type(network)
        if type(self.model) is not wanted:
            _refuse([f"it wrapped the network in {type(self.model).__name__}, not {wanted.__name__}"])
        model: Network = self.model
        return model

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Hold gradients back until the last microbatch."""
        held: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.model)
        return held

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DDP averages over processes, and the factor makes a sum of that."""
        self.accelerator.backward(loss * self.ranks.size)

    def close(self) -> None:
        """Release the wrapped network."""
        part_with(self.__dict__.pop("model", None))
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
        return [f"{name}: {got!r}, not {wanted!r}" for name, got, wanted in pairs if got != wanted]


def _refuse(differences: list[str]) -> None:
    if differences:
        raise OptionError(
            "\n  ".join(["accelerate set up something other than requested:", *differences])
            + "\nlook at its configuration (accelerate env), or leave engine out"
        )
