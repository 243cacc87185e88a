"""Metrics as JSON lines, and what a person sees while training runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from diffkit.files import write_atomically
from diffkit.output import log
from diffkit.progress import Bar
from diffkit.progress import bar as progress_bar

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
        kept = [line for line in read_metrics(folder, name) if line["step"] <= step]
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
    """Return the lines of a run's metrics, or of another such file; a last line that was cut short is left out."""
    path = Path(folder) / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _line(metrics: Mapping[str, Any]) -> bytes:
    """JSON has no NaN or infinity: they become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    return (json.dumps(plain, allow_nan=False) + "\n").encode()


def bar(done: int, total: int, show: bool) -> AbstractContextManager[Bar]:
    """Show a bar with an ETA on standard error."""
    return progress_bar(total, "training", show, done=done)


say = log
