"""The processes of one job: the rank of this one, and collective operations.

A launcher such as torchrun sets the rank in the environment. Communication uses the host's network (gloo), never the
device, so there is no GPU synchronization. Without a launcher there is one process, and nothing is sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from attrs import frozen

from diffkit.errors import DiffkitError, OptionError

T = TypeVar("T")
DAY = 24 * 3600.0
LOG_TIMEOUT = 5.0
"""Seconds to ask the launcher's store whether an error has been logged already; without an answer it is logged."""
JOIN_TIMEOUT = 1800.0
"""Seconds to connect to the first process, torch's default: another machine's may start much later."""
AGENT_TIMEOUT = 60.0
"""Seconds to connect to the launcher's own store, which is there before its processes: later it has been killed."""


@frozen
class Ranks:
    """The processes of a job: rank of this one and their number; all must call each method, in the same order.

    Attributes:
        rank: 0..size - 1; rank 0 writes files of which there is one.
        size: Number of processes.
        group: The process group that they communicate by; the default one by default.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def gather(self, mine: Any) -> list[Any]:
        """Return the values of all processes, in order of rank, in every process."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def all_ranks(self, do: Callable[[], T]) -> list[T]:
        """Call ``do`` in every process and return all results; if one raises, all raise."""
        if self.size == 1:
            return [do()]
        value, error = _call_or_error(do)
        outcomes = self.gather((value, _error_message(error)))
        if error is not None:
            raise error
        for rank, (_, other) in enumerate(outcomes):
            if other is not None:
                raise _rebuild_error(other, rank)
        return [value for value, _ in outcomes]

    def rank_zero(self, do: Callable[[], T]) -> T:
        """Call ``do`` in rank 0 alone and return its result, or raise its error, everywhere."""
        if self.size == 1:
            return do()
        value, error = _call_or_error(do) if self.rank == 0 else (None, None)
        message = [(value, _error_message(error))]
        dist.broadcast_object_list(message, src=0, group=self.group)
        if error is not None:
            raise error
        value, other = message[0]
        if other is not None:
            raise _rebuild_error(other, 0)
        return value  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return bool(self.largest(int(flag)))

    def largest(self, number: int) -> int:
        """Return the largest number of all processes."""
        if self.size == 1:
            return number
        maximum = torch.tensor([number], dtype=torch.int32)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.group)
        return int(maximum)


def background_ranks(ranks: Ranks, timeout: float) -> Ranks:
    """Return the same processes with a group of their own, for a thread that works beside this one; all must call it.

    Args:
        ranks: The processes.
        timeout: Seconds that a process waits for the others.
    """
    if ranks.size == 1:
        return ranks
    return Ranks(ranks.rank, ranks.size, dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)))


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process of the job has died."""
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    # gloo's errors have no class of their own
    return type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "Connection closed by peer"))


def launched() -> Ranks:
    """Return rank and number of processes from the launcher's environment; one process without a launcher.

    Raises:
        OptionError: The environment has a size but no rank.
    """
    size = _environment_integer("WORLD_SIZE", 1)
    if size > 1 and "RANK" not in os.environ:
        raise OptionError(f"WORLD_SIZE={size} is set but RANK is not; start the processes with torchrun")
    return Ranks(_environment_integer("RANK", 0), size) if size > 1 else Ranks()


def local_rank() -> int:
    """Return the rank of this process among those of this machine; 0 without a launcher."""
    return _environment_integer("LOCAL_RANK", 0)


def ranks_of_job() -> Ranks:
    """Return this process's rank and their number, of the process group it is in or else of the launcher."""
    joined = dist.is_available() and dist.is_initialized()
    return Ranks(dist.get_rank(), dist.get_world_size()) if joined else launched()


@contextmanager
def join_ranks(*, timeout: float = DAY, gpu: bool = False) -> Iterator[Ranks]:
    """Join the process group of the processes that were launched together, if there are several.

    Args:
        timeout: Seconds that a process waits for the others; a day by default, as the slowest may take long.
        gpu: Whether tensors on GPUs are exchanged too, by NCCL.
    Raises:
        OptionError: The launcher's environment is incomplete, or the launcher cannot be reached.
    """
    found = ranks_of_job()
    if found.size == 1 or dist.is_initialized():
        yield found
        return
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    long = timedelta(seconds=timeout)
    store = _open_store(min(timeout, AGENT_TIMEOUT if _uses_agent_store() else JOIN_TIMEOUT))
    store.set_timeout(long)
    dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.size, timeout=long)
    try:
        yield found
    except BaseException:
        if gpu:
            raise  # destroying an NCCL group waits for the others, and they for this process; its exit frees them
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def is_first_to_log(text: str) -> bool:
    """Return whether no other process of the job has logged this text yet, and mark it as logged.

    This uses the launcher's store, which outlives the processes. Without one every process logs everything, so that no
    process's error is lost.
    """
    if not _uses_agent_store():
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: Any = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=LOG_TIMEOUT))  # type: ignore[attr-defined]
        key = f"{_attempt()}/logged/{hashlib.sha256(text.encode()).hexdigest()}"
        return bool(store.add(key, 1) == 1)
    except Exception:  # the store may be gone, or torch built without it
        return True


def _uses_agent_store() -> bool:
    """Return whether the launcher lends its processes a store, which outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _attempt() -> str:
    """Return a name for this start of the processes, as a launcher that restarts them reuses its store."""
    return f"attempt_{_environment_integer('TORCHELASTIC_RESTART_COUNT', 0)}"


def _open_store(timeout: float) -> Any:
    """Open the store through which the processes find each other, from the launcher's environment."""
    from torch.distributed.rendezvous import rendezvous

    try:
        found = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))[0]
        if not _uses_agent_store():
            return found  # a new one for each start; machines that came later count their starts differently
        return dist.PrefixStore(_attempt(), found)  # type: ignore[attr-defined]  # without the addresses of processes that died
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"the processes of this job do not find each other: {error}; is their launcher alive?"
        ) from error


def _call_or_error(do: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return do(), None
    except Exception as error:
        return None, error


def _error_message(error: Exception | None) -> tuple[type[Exception], str] | None:
    """Return class and text of an error to send to other processes; diffkit's own errors keep their class."""
    if error is None:
        return None
    return (type(error), str(error)) if isinstance(error, DiffkitError) else (RuntimeError, repr(error))


def _rebuild_error(message: tuple[type[Exception], str], rank: int) -> Exception:
    kind, text = message
    raised = kind.__new__(kind)  # some errors have constructor arguments other than the text
    raised.args = (text if issubclass(kind, DiffkitError) else f"rank {rank}: {text}",)
    return raised


def _environment_integer(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"the environment's {name} must be an integer, got {text!r}") from None
