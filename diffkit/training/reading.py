"""Reading examples: every error becomes a `DataError` that names the example, also from a worker process."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from attrs import frozen

from diffkit.data.base import Batch, Data, Indices
from diffkit.errors import DataError, DiffkitError


def read(data: Data, indices: Indices) -> Batch:
    """Return the examples with these indices.

    Raises:
        DataError: One cannot be read; the text names it.
    """
    try:
        return data.batch(indices)
    except (DiffkitError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{_culprit(data, indices)} cannot be read: {_words(error)}") from error


def _culprit(data: Data, indices: Indices) -> str:
    """Text that names the first example that cannot be read alone."""
    listed = [int(index) for index in indices]
    for index in listed:
        try:
            data.batch([index])
        except Exception:  # the data may raise any error
            return f"example {index}"
    return f"a batch of the examples {', '.join(map(str, listed[:8]))}{', ...' if listed[8:] else ''}"


def _words(error: Exception) -> str:
    """An error's message on one line, with the name of its class where the message is not enough."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@frozen
class Failure:
    """An error on its way from a worker process to its parent.

    Attributes:
        error: The error itself, if it can be pickled, else one of the same text.
        trace: Its traceback, as text.
    """

    error: BaseException
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Pack an error; diffkit's own and those that end a process keep their class."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, DiffkitError):
            rebuilt = type(error).__new__(type(error))  # some errors are made from other arguments than their text
            rebuilt.args = (str(error),)
            return cls(rebuilt, trace)
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            return cls(type(error)(*map(str, error.args)), trace)
        return cls(RuntimeError(_words(error) if isinstance(error, Exception) else repr(error)), trace)

    def unpack(self) -> BaseException:
        """Return the error to raise in the parent, with the worker's traceback as its cause."""
        self.error.__cause__ = RuntimeError(f"in a process that reads data:\n{self.trace}")
        return self.error


def unpacked(found: Iterator[Batch | Failure]) -> Iterator[Batch]:
    """Yield the batches that worker processes send, or raise the error of one of them.

    Raises:
        DataError: An example cannot be read.
    """
    for each in found:
        if isinstance(each, Failure):
            raise each.unpack()
        yield each


def lost_worker(error: BaseException) -> DataError | None:
    """Return the error to raise if ``error`` means that a worker process died; torch has no class for that."""
    reported = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    if not reported and not isinstance(error, ConnectionError | EOFError):  # errors of the pipe for its batches
        return None
    return DataError(
        "a process that reads data was killed, perhaps for want of memory; read in the training process",
        fix={"workers": 0},
    )
