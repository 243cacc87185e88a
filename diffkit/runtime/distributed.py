"""The processes of one job: which of them this one is, and how they agree.

A launcher such as torchrun says so in the environment. Everything here goes over the host's network (gloo), never over
the device, so that asking makes no GPU wait. Without a launcher there is one process, and nothing is sent.
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
ASKING = 5.0
"""Seconds to ask the launcher in whether an error was said already; then it is said again."""
JOINING = 1800.0
"""Seconds to find the launcher in, torch's own default: one that was killed meanwhile would be waited for in vain."""


@frozen
class Ranks:
    """Which of how many processes this is; every method must be called by all of them, in the same order.

    Attributes:
        rank: 0..size - 1; rank 0 writes what there is one of.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def gather(self, mine: Any) -> list[Any]:
        """Return what every process has, in order of rank, in every process."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def all_ranks(self, do: Callable[[], T]) -> list[T]:
        """Call ``do`` in every process and return all results; if one raises, all raise."""
        if self.size == 1:
            return [do()]
        value, error = _outcome(do)
        outcomes = self.gather((value, _told(error)))
        if error is not None:
            raise error
        for rank, (_, other) in enumerate(outcomes):
            if other is not None:
                raise _again(other, rank)
        return [value for value, _ in outcomes]

    def rank_zero(self, do: Callable[[], T]) -> T:
        """Call ``do`` in rank 0 alone and return its result, or raise its error, everywhere."""
        if self.size == 1:
            return do()
        value, error = _outcome(do) if self.rank == 0 else (None, None)
        told = [(value, _told(error))]
        dist.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        value, other = told[0]
        if other is not None:
            raise _again(other, 0)
        return value  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.largest(int(flag)))

    def largest(self, number: int) -> int:
        """Return the largest number of all processes."""
        if self.size == 1:
            return number
        told = torch.tensor([number], dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process of the job is gone."""
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    # gloo's errors have no class of their own
    return type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "Connection closed by peer"))


def launched() -> Ranks:
    """Return what the launcher's environment says; one process where there is none.

    Raises:
        OptionError: The environment says only half of it.
    """
    size = _number("WORLD_SIZE", 1)
    if size > 1 and "RANK" not in os.environ:
        raise OptionError(f"WORLD_SIZE={size} is set but RANK is not; start the processes with torchrun")
    return Ranks(_number("RANK", 0), size) if size > 1 else Ranks()


def local_rank() -> int:
    """Return which of this machine's processes this is; 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


@contextmanager
def ranks(*, timeout: float = DAY, gpu: bool = False) -> Iterator[Ranks]:
    """Join the processes that were launched together, if there are several.

    Args:
        timeout: Seconds after which a process that waits for the others gives up; a day by default, as one may wait
            long for the slowest.
        gpu: Tensors on GPUs are exchanged as well, by NCCL.
    Raises:
        OptionError: The launcher's environment says only half of what is needed, or it cannot be found.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    found = launched()
    if found.size == 1:
        yield found
        return
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    long = timedelta(seconds=timeout)
    store = _store(min(timeout, JOINING))
    store.set_timeout(long)
    dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.size, timeout=long)
    try:
        yield found
    except BaseException:
        if gpu:
            raise  # NCCL would wait for the others here, and they for this one, with nothing said; its end frees them
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def first_to_log(text: str) -> bool:
    """Return whether no other process of the job has said this text yet, which is then taken for said.

    The launcher is asked, whose store outlives the processes. Where it keeps none each process says everything: what is
    wrong in one process alone must not be lost.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        kept: Any = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ASKING))  # type: ignore[attr-defined]
        key = f"{_attempt()}/said/{hashlib.sha256(text.encode()).hexdigest()}"
        return bool(kept.add(key, 1) == 1)
    except Exception:  # it may be gone, or torch be built without it
        return True


def _attempt() -> str:
    """Name of this start of the processes: a launcher that starts them again keeps the store."""
    return f"attempt_{_number('TORCHELASTIC_RESTART_COUNT', 0)}"


def _store(timeout: float) -> Any:
    """Where the processes find each other, as the launcher's environment says."""
    from torch.distributed.rendezvous import rendezvous

    try:
        found = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))[0]
        return dist.PrefixStore(_attempt(), found)  # type: ignore[attr-defined]  # not with addresses of those that died
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"the processes of this job do not find each other: {error}; is their launcher alive?"
        ) from error


def _outcome(do: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return do(), None
    except Exception as error:
        return None, error


def _told(error: Exception | None) -> tuple[type[Exception], str] | None:
    """An error as other processes hear of it; diffkit's own keep their class."""
    if error is None:
        return None
    return (type(error), str(error)) if isinstance(error, DiffkitError) else (RuntimeError, repr(error))


def _again(told: tuple[type[Exception], str], rank: int) -> Exception:
    kind, text = told
    raised = kind.__new__(kind)  # some errors are made from other arguments than their text
    raised.args = (text if issubclass(kind, DiffkitError) else f"rank {rank}: {text}",)
    return raised


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"the environment's {name} must be an integer, got {text!r}") from None
