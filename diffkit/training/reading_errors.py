"""Errors of reading training examples: each becomes a `DataError` that names the example, from a worker process too."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator

from attrs import frozen

from diffkit.data.base import Batch, Data, Indices
from diffkit.errors import DataError, DiffkitError, failure


def read_examples(data: Data, indices: Indices) -> Batch:
    """Read the examples with these indices; an error names the example that cannot be read.

    Raises:
        DataError: An example cannot be read.
    """
    try:
        return data.batch(indices)
    except (DiffkitError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{_first_unreadable(data, indices)} cannot be read: {failure(error)}") from error


def _first_unreadable(data: Data, indices: Indices) -> str:
    """Return a text that names the first example that cannot be read by itself."""
    listed = [int(index) for index in indices]
    for index in listed:
        try:
            data.batch([index])
        except Exception:  # the data may raise any error
            return f"example {index}"
    return f"a batch of the examples {', '.join(map(str, listed[:8]))}{', ...' if listed[8:] else ''}"


@frozen
class WorkerFailure:
    """An error that a data worker sends to its parent process.

    Attributes:
        error: The error itself, if it can be pickled, else one of the same text.
        trace: Its traceback, as text.
    """

    error: BaseException
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> WorkerFailure:
        """Return an error as a worker sends it; diffkit's errors and those that end a process keep their class."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, DiffkitError):
            rebuilt = type(error).__new__(type(error))  # the constructors of some errors do not take their text
            rebuilt.args = (str(error),)
            return cls(rebuilt, trace)
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            return cls(type(error)(*map(str, error.args)), trace)
        return cls(RuntimeError(failure(error)), trace)

    def unpack(self) -> BaseException:
        """Return the worker's error, to raise in the parent, with the worker's traceback as its cause."""
        self.error.__cause__ = RuntimeError(f"in a process that reads data:\n{self.trace}")
        return self.error


def raise_worker_failures(found: Iterator[Batch | WorkerFailure]) -> Generator[Batch, None, None]:
    """Yield the batches that worker processes send; raise the error of a worker that failed.

    When it is closed the processes are ended. Else a traceback that is kept would keep them, and they, which ignore
    signals, the interpreter at its exit.

    Raises:
        DataError: An example cannot be read.
    """
    try:
        for each in found:
            if isinstance(each, WorkerFailure):
                raise each.unpack()
            yield each
    finally:
        if hasattr(found, "_shutdown_workers"):
            found._shutdown_workers()


def worker_died_error(error: BaseException) -> DataError | None:
    """Return the error to raise if ``error`` means that a data worker died, else None; torch has no class for that."""
    reported = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    if not reported and not isinstance(error, ConnectionError | EOFError):  # errors of the pipe for its batches
        return None
    return DataError(
        "a process that reads data was killed, perhaps for want of memory; read in the training process",
        fix={"workers": 0},
    )
