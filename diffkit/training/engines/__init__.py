"""Engines: the devices and processes of training; `engine_for` chooses one by options and launched processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffkit.errors import OptionError
from diffkit.runtime.distributed import Ranks, join_ranks, local_rank, ranks_of_job
from diffkit.training.config import TrainConfig
from diffkit.training.engines.engine import Engine as Engine

__all__ = ["Engine", "check_processes", "engine_for"]


@contextmanager
def engine_for(device: torch.device, config: TrainConfig) -> Iterator[Engine]:
    """Yield the training engine for the options and the launched processes; the process group is destroyed at the end.

    Raises:
        OptionError: The processes, the device and the options do not fit; raised before any communication.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # on the current GPU FSDP2 puts its shards, and a seed is set
    _check_device(device, config, ranks_of_job())
    with join_ranks(timeout=config.timeout, gpu=device.type == "cuda") as group:
        engine = _create_engine(device, config, group)
        try:
            yield engine
        finally:
            engine.close()


def _create_engine(device: torch.device, config: TrainConfig, group: Ranks) -> Engine:
    if config.strategy == "fsdp":
        from diffkit.training.engines.sharded import Sharded

        return Sharded(device, group)
    if group.size > 1:
        from diffkit.training.engines.replicated import Replicated

        return Replicated(device, group)
    return Engine(device)


def check_processes(config: TrainConfig, size: int) -> None:
    """Raise `OptionError` unless the options of training fit the number of processes."""
    if config.strategy == "fsdp" and size == 1:
        raise OptionError(
            "shares the network among processes, but there is one; start several with torchrun --nproc-per-node=N",
            option="strategy",
            value="fsdp",
            fix={"strategy": "ddp"},
        )
    if config.batch_size < size:
        raise OptionError(
            f"leaves some of the {size} processes nothing to do", option="batch_size", value=config.batch_size
        )
    if config.strategy == "fsdp" and config.batch_size % size:
        raise OptionError(
            f"must be a multiple of {size}, the number of processes, for strategy 'fsdp'",
            option="batch_size",
            value=config.batch_size,
        )


def _check_device(device: torch.device, config: TrainConfig, group: Ranks) -> None:
    check_processes(config, group.size)
    if device.type == "cuda" and group.size > 1 and device.index != local_rank():
        raise OptionError(
            f"process {group.rank} is number {local_rank()} on this machine, but its system is on {device}; compose "
            f"it with device='cuda:{local_rank()}', so that each has a GPU of its own"
        )
