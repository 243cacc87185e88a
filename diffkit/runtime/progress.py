"""Progress with an ETA on standard error: a bar on a terminal, by rich if installed; otherwise a line every 10 s.

A closed or full stream never stops the work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from diffkit.runtime.output import printable, safe_stream

if TYPE_CHECKING:
    from rich.progress import Progress

REDRAWN, REPEATED = 0.5, 10.0
"""Seconds between two states of the line: on a terminal, where it is redrawn, and in a file, where a line is added."""


class Bar(Protocol):
    """Protocol of a progress bar."""

    def advance(self, done: int = 1) -> None:
        """Add to the finished amount."""

    def note(self, text: str) -> None:
        """Show a few words next to the bar."""


@contextmanager
def progress(total: int, label: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields a function that adds to the finished amount.

    Args:
        total: Units of work.
        label: A few words for the work.
        show: False yields a function that does nothing.
    """
    with bar(total, label, show) as shown:
        yield shown.advance


@contextmanager
def bar(total: int, label: str, show: bool = True, *, done: int = 0) -> Iterator[Bar]:
    """Show a progress bar of ``total`` units of work, ``done`` of them finished before; yields a `Bar`."""
    if not show:
        yield _SilentBar()
        return
    out, label = safe_stream(sys.stderr), printable(label)
    rich = _create_rich_progress(out)
    if rich is not None:
        with rich:
            yield _RichBar(rich, rich.add_task(label, total=total, completed=done, note=""))
        return
    line = _LineBar(out, label, done, total)
    try:
        yield line
    finally:
        line.close()


def _create_rich_progress(out: TextIO) -> Progress | None:
    """Return rich's progress bars; None if rich is not installed, or the stream cannot redraw a bar."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        return None
    console = Console(file=out)
    if not (out.isatty() or console.is_jupyter):
        return None
    label, words = (TextColumn(f"{{task.{text}}}", markup=False) for text in ("description", "fields[note]"))
    times = (TimeElapsedColumn(), "ETA", TimeRemainingColumn())
    columns = (label, BarColumn(), MofNCompleteColumn(), *times, words)
    # the bar prints meanwhile output to the terminal; output that goes to a file must stay there
    return Progress(*columns, console=console, redirect_stdout=safe_stream(sys.stdout).isatty())


def duration(seconds: float) -> str:
    """Return a duration as text, such as "40 s", "3 min", "2 h 5 min", "3 days 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


class _SilentBar(Bar):
    def advance(self, done: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _RichBar(Bar):
    def __init__(self, progress: Progress, task: Any):
        self.progress, self.task = progress, task

    def advance(self, done: int = 1) -> None:
        self.progress.advance(self.task, done)

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=printable(text))


class _LineBar(Bar):
    """A progress bar as a line of text: redrawn on a terminal, else printed every 10 s and at the end."""

    def __init__(self, out: TextIO, label: str, done: int, total: int):
        self.out, self.label, self.first, self.done, self.total = out, label, done, done, total
        self.begun = self.shown = time.monotonic()
        self.text = ""
        self.redraws = out.isatty()
        if self.redraws:
            self._write("")

    def advance(self, done: int = 1) -> None:
        self.done += done
        if time.monotonic() - self.shown >= (REDRAWN if self.redraws else REPEATED):
            self._write("" if self.redraws else "\n")

    def note(self, text: str) -> None:
        self.text = printable(text)

    def close(self) -> None:
        """Print the final progress, with a line break."""
        self._write("\n")

    def _write(self, end: str) -> None:
        self.shown = time.monotonic()
        elapsed, count = self.shown - self.begun, self.done - self.first
        eta = duration(elapsed / count * (self.total - self.done)) if count else "not known yet"
        state = f"{self.label} {self.done}/{self.total}  {duration(elapsed)}, ETA {eta}  {self.text}".rstrip()
        self.out.write(f"\r\x1b[K{state}{end}" if self.redraws else f"{state}{end}")
        self.out.flush()
