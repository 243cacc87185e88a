"""Progress with an ETA on standard error: rich's bar where rich is installed, a plain line where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


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
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining
    except ImportError:
        yield from _plain(total, label, sys.stderr)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("ETA"), Remaining(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


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
