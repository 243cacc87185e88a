"""Several processes of one job, forked from the test: no interpreter is started and nothing is imported again."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.fsdp  # noqa: F401  # takes seconds to import: once here, not in each fork

PATIENCE = 60
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")


class Job:
    """Processes that see a launcher's environment and call ``do(rank)``; wait for what each returns."""

    def __init__(self, size: int, do: Callable[[int], Any]):
        port = _free_port()
        self.processes = [_Child(rank, size, port, do) for rank in range(size)]

    def wait(self) -> list[Any]:
        """Return what each process returned; fail with what one of them raised."""
        end = time.monotonic() + PATIENCE
        while any(process.runs() for process in self.processes) and time.monotonic() < end:
            time.sleep(0.01)
        if time.monotonic() >= end:
            said = [pickle.loads(process.told)[0] for process in self.processes if process.told]
            self.kill(signal.SIGKILL)
            pytest.fail("\n".join([f"{len(said)} of the processes ended within {PATIENCE} s", *said]))
        outcomes = [process.outcome() for process in self.processes]
        failed = [text for text, _ in outcomes if text]
        assert not failed, "\n".join(failed)
        return [value for _, value in outcomes]

    def kill(self, number: int) -> None:
        """Send every process a signal, and wait for its end."""
        for process in self.processes:
            if process.runs():
                os.kill(process.id, number)
        for process in self.processes:
            process.end()


class _Child:
    def __init__(self, rank: int, size: int, port: int, do: Callable[[int], Any]):
        reading, writing = os.pipe()
        self.id = os.fork()
        if self.id == 0:
            os.close(reading)
            os.environ |= dict(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            try:
                told = pickle.dumps(("", do(rank)))
            except BaseException:
                told = pickle.dumps((f"rank {rank}: {traceback.format_exc()}", None))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(told)
            os._exit(0)
        os.close(writing)
        self.reading, self.told, self.status = reading, b"", None
        os.set_blocking(reading, False)

    def runs(self) -> bool:
        """Return whether it still does, and read what it says meanwhile."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reading, 1 << 16):
                self.told += piece
        if self.status is None:
            self.status = os.waitpid(self.id, os.WNOHANG)[0] or None
        return self.status is None

    def outcome(self) -> tuple[str, Any]:
        """Return what it raised and what it returned."""
        self.runs()
        os.close(self.reading)
        return pickle.loads(self.told) if self.told else (f"process {self.id} was killed", None)

    def end(self) -> None:
        """Wait for a process that was killed."""
        os.close(self.reading)
        if self.status is None:
            os.waitpid(self.id, 0)


def forked(size: int, do: Callable[[int], Any]) -> list[Any]:
    """Return what ``do(rank)`` returns in each of ``size`` processes of one job."""
    return Job(size, do).wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
