"""Map a function over many items in order, in this process or in several, with errors in place of results."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from diffkit.errors import DataError, OptionError

T = TypeVar("T")
_MANY = 64
_CHUNK = 32
"""Number of items that a process takes at a time."""
_function: Callable[[Any], Any] | None = None


def map_in_order(function: Callable[[Any], T], items: Sequence[Any], processes: int = 0) -> Iterator[T | DataError]:
    """Yield a function's result for each item in order, or the `DataError` it raised, by parallel processes.

    Args:
        function: The function of an item; for several processes it and its results must be picklable.
        items: Its arguments.
        processes: Number of processes, which are spawned, not forked; 0 works in this process.
    Raises:
        DataError: A process died, for example for lack of memory.
        OptionError: There are more processes than are useful.
    """
    if processes > (most := max(_MANY, 4 * (os.cpu_count() or 1))):
        raise OptionError(f"is more than are useful; pass at most {most}", option="processes", value=processes)
    if processes == 0:
        yield from (_call_or_error(function, item) for item in items)
        return
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_process, initargs=(function,)) as pool:
        try:
            for results in pool.map(_run_chunk, chunks):
                yield from results
        except BrokenProcessPool as error:
            raise DataError(
                "a process that reads images died, for lack of memory or in a damaged image; a script that uses "
                "processes needs its work under if __name__ == '__main__':",
                fix={"processes": 0},
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def logs_for_job() -> bool:
    """Return whether this process logs for its job: rank 0, as all ranks read the same data."""
    return os.environ.get("RANK", "0") == "0"


def _start_process(function: Callable[[Any], Any]) -> None:
    """In a new process: store the function, and ignore Ctrl-C, which stops the parent."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_chunk(chunk: Sequence[Any]) -> list[Any]:
    assert _function is not None
    return [_call_or_error(_function, item) for item in chunk]


def _call_or_error(function: Callable[[Any], T], item: Any) -> T | DataError:
    try:
        return function(item)
    except DataError as error:
        return DataError(str(error))  # its cause may not be picklable
