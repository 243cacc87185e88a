"""Progress with an ETA on standard error: rich's bar where rich is installed, a plain line where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress(total: int, label: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done; yields a function to call with how much more is.

    Args:
        total: Units of work.
        label: What is being done, a few words.
        show: False yields a function that does nothing.
    """
    if not show:
        yield lambda done: None
        return
    bar = rich_bar()
    if bar is None:
        yield from _plain(total, label, sys.stderr)
        return
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def rich_bar(*more: str) -> Progress | None:
    """Return rich's bars with an ETA on standard error, and more columns of text; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "ETA")
    return Progress(*columns, TimeRemainingColumn(), *more, console=Console(stderr=True))


def _plain(total: int, label: str, out: TextIO) -> Iterator[Callable[[int], None]]:
    """One line, rewritten at most twice a second, or printed once at the end where it cannot be rewritten."""
    begun = shown = time.monotonic()
    count = 0

    def write(end: str) -> None:
        elapsed = time.monotonic() - begun
        eta = elapsed / count * (total - count) if count else float("nan")
        out.write(f"\r{label} {count}/{total}  {elapsed:.0f} s, ETA {eta:.0f} s{end}")
        out.flush()

    def advance(done: int) -> None:
        nonlocal count, shown
        count += done
        if out.isatty() and time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            write("")

    if out.isatty():
        write("")
    try:
        yield advance
    finally:
        write("\n")
