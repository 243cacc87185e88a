"""Engine of several processes, each with all of the network: torch's DistributedDataParallel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffkit.errors import OptionError
from diffkit.training.engines.engine import Engine, Network, Trained

# the option's name since torch 2.12; at first buffers are those of rank 0, and then each process updates its own
_FORWARD = "forward_sync_buffers"
_SYNC_BUFFERS = _FORWARD if _FORWARD in signature(DistributedDataParallel.__init__).parameters else "broadcast_buffers"


class MultiProcess(Engine):
    """Base class of the engines of several processes: how they exchange gradients and results."""

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DDP and FSDP2 average them over processes, and the factor turns the average into a sum."""
        super().backward(loss * self.ranks.size)

    def gather(self, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return tensors of the whole batch, gathered on the device in one call, as float64, which loses no bit."""
        if self.ranks.size == 1:
            return dict(tensors)
        given = tensors.values()
        widths = [math.prod(tensor.shape[1:]) for tensor in given]
        columns = [tensor.detach().double().reshape(-1, width) for tensor, width in zip(given, widths, strict=True)]
        local = torch.cat(columns, 1)
        longest = -(-size // self.ranks.size)
        local = torch.nn.functional.pad(local, (0, 0, 0, longest - len(local)))
        found = [torch.empty_like(local) for _ in range(self.ranks.size)]
        dist.all_gather(found, local)
        slices = [self.local_slice(size, rank) for rank in range(self.ranks.size)]
        rows = torch.cat([part[: s.stop - s.start] for part, s in zip(found, slices, strict=True)])
        pieces = torch.split(rows, widths, 1)
        return {
            name: piece.reshape(size, *like.shape[1:]).to(like.dtype)
            for (name, like), piece in zip(tensors.items(), pieces, strict=True)
        }


class Replicated(MultiProcess):
    """Engine by DDP, which exchanges gradients during the backward pass."""

    name = "ddp"
    model: DistributedDataParallel

    def wrap(self, network: nn.Module) -> Network:
        """Return the network wrapped in DDP; its weights become those of rank 0."""
        device = [self.device.index] if self.device.type == "cuda" else None
        options: dict[str, Any] = {_SYNC_BUFFERS: False}
        self.model = DistributedDataParallel(network, device_ids=device, gradient_as_bucket_view=True, **options)
        return self.model

    def gradient_norm(self, trained: Trained) -> Tensor:
        """Return the norm of all gradients.

        Raises:
            OptionError: A parameter has no gradient, so that DDP never exchanges its bucket.
        """
        unused = [name for name, p in trained if p.grad is None]
        if unused:
            raise OptionError(
                f"{len(unused)} parameters of the network took no part in its output (first: {unused[0]}), which "
                "replicas cannot wait for; remove them, or train without them",
                fix={"freeze": unused},
            )
        return super().gradient_norm(trained)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context that defers the exchange of gradients until the last microbatch."""
        return nullcontext() if last else self.model.no_sync()

    def close(self) -> None:
        """Release the wrapped network."""
        model = self.__dict__.pop("model", None)
        # An error's traceback may keep the model alive, and an object that holds a connection after the group is
        # destroyed may wait for it forever in its destructor.
        for name in ("reducer", "logger", "process_group"):
            vars(model).pop(name, None) if model is not None else None
