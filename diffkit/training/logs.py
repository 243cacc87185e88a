"""Metrics as JSON lines, and what a person sees while training runs."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from diffkit._errors import CheckpointError
from diffkit._strict import read_json_lines, reason
from diffkit.files import write_atomically
from diffkit.progress import rich_bar

NAME = "metrics.jsonl"


class MetricsFile:
    """One JSON object per line, in order of "step"; what an interrupted run wrote too much is cut off first.

    Args:
        folder: The run's folder.
        step: Completed updates to continue from; lines about later ones are removed.
        name: Of the file.
    """

    def __init__(self, folder: Path, step: int, name: str = NAME):
        self.path = folder / name
        found, damaged = _read(self.path)
        if damaged:
            say(f"warning: {self.path}: {len(damaged)} damaged lines are left out (first: line {damaged[0]})")
        kept = [line for line in found if line["step"] <= step]
        write_atomically(self.path, b"".join(_line(metrics) for metrics in kept))
        self.file = self.path.open("ab")

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append a line, visible to readers at once."""
        self.file.write(_line(metrics))
        self.file.flush()

    def sync(self) -> None:
        """Make sure that what was written is on the disk."""
        os.fsync(self.file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def has_line(folder: Path, step: int) -> bool:
    """Return whether a run's metrics have a line of a step."""
    return any(line["step"] == step for line in read_metrics(folder))


class NoMetrics:
    """For processes that leave the file to the first of them."""

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def read_metrics(folder: str | Path, name: str = NAME) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, or of another such file; damaged lines are left out."""
    return _read(Path(folder) / name)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of a file of metrics that are whole, and the numbers of those that are not."""
    if not path.exists():
        return [], []
    try:
        return read_json_lines(path, _is_metrics)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error


def _is_metrics(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a step, and has numbers only."""
    numbers = all(value is None or isinstance(value, int | float) for value in line.values())
    return numbers and isinstance(line.get("step"), int)


def _line(metrics: Mapping[str, Any]) -> bytes:
    """JSON has no NaN or infinity: they become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    return (json.dumps(plain, allow_nan=False) + "\n").encode()


class Bar(Protocol):
    """Shows how far training is."""

    def advance(self) -> None:
        """One step more is done."""

    def note(self, text: str) -> None:
        """Show a few words beside the bar."""


class _Silent(Bar):
    def advance(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Rich(Bar):
    def __init__(self, progress: Any, task: Any):
        self.progress, self.task = progress, task

    def advance(self) -> None:
        self.progress.advance(self.task, 1)

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=text)


class _Plain(Bar):
    """A line now and then, for logs and where rich is not installed."""

    def __init__(self, done: int, total: int):
        self.begun = self.shown = time.monotonic()
        self.first, self.done, self.total = done, done, total

    def advance(self) -> None:
        self.done += 1

    def note(self, text: str) -> None:
        now = time.monotonic()
        if now - self.shown < 10 and self.done < self.total:
            return
        self.shown = now
        left = (now - self.begun) / max(self.done - self.first, 1) * (self.total - self.done)
        say(f"training {self.done}/{self.total}  ETA {left:.0f} s  {text}")


@contextmanager
def bar(done: int, total: int, show: bool) -> Iterator[Bar]:
    """Show a bar with an ETA on standard error: rich's on a terminal where it is installed, else plain lines."""
    if not show:
        yield _Silent()
        return
    progress = rich_bar("{task.fields[note]}") if sys.stderr.isatty() else None
    if progress is None:
        yield _Plain(done, total)
        return
    with progress:
        yield _Rich(progress, progress.add_task("training", total=total, completed=done, note=""))


def say(text: str) -> None:
    """Tell the person who watches, on standard error."""
    print(text, file=sys.stderr, flush=True)
