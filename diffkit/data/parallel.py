"""One function over many items, here or in several processes, with errors in the place of results."""

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


def in_order(function: Callable[[Any], T], items: Sequence[Any], processes: int = 0) -> Iterator[T | DataError]:
    """Yield the function's result for each item in order, or the `DataError` it raised.

    Args:
        function: The function of an item; for several processes it has to be picklable, and so do its results.
        items: Its arguments.
        processes: 0 works in this process; others are started afresh, never forked, and import what the function needs.
    Raises:
        DataError: A process died, such as for want of memory.
        OptionError: There are more processes than help.
    """
    if processes > (most := max(_MANY, 4 * (os.cpu_count() or 1))):
        raise OptionError(f"are more than help here; take at most {most}", option="processes", value=processes)
    if processes == 0:
        yield from (_tried(function, item) for item in items)
        return
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(function,)) as pool:
        try:
            for results in pool.map(_work, chunks):
                yield from results
        except BrokenProcessPool as error:
            raise DataError(
                "a process that reads images died, for want of memory or in a damaged image; a script that uses "
                "processes needs its work under if __name__ == '__main__':",
                fix={"processes": 0},
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def logs_for_job() -> bool:
    """Whether this process logs for its job: all read the same, so one is enough."""
    return os.environ.get("RANK", "0") == "0"


def _begin(function: Callable[[Any], Any]) -> None:
    """In a new process: keep the function, and leave Ctrl-C to the parent."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(chunk: Sequence[Any]) -> list[Any]:
    assert _function is not None
    return [_tried(_function, item) for item in chunk]


def _tried(function: Callable[[Any], T], item: Any) -> T | DataError:
    try:
        return function(item)
    except DataError as error:
        return DataError(str(error))  # its cause may not be picklable
