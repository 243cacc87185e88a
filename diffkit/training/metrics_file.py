"""The metrics of a run, RUN/metrics.jsonl: one JSON object per line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffkit.runtime.files import write_atomically
from diffkit.runtime.output import log
from diffkit.runtime.strict_json import parse_json
from diffkit.training.checkpoint import write_errors
from diffkit.training.metrics import finite_or_none

NAME = "metrics.jsonl"
_LONGEST = 1 << 20
"""Largest size of a line in bytes; no run has so many metrics."""


class MetricsFile:
    """The file of a run's metrics, one JSON object per line, in order of "step"; new lines are appended.

    Args:
        folder: The run's folder.
        step: Completed updates; lines of later ones are removed, see `repair_metrics`.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / NAME
        repair_metrics(folder, step)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        # without a buffer: closing the file never has to write anything again
        self.file = os.fdopen(os.open(self.path, flags, 0o666), "ab", buffering=0)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append a line, visible to readers at once.

        Raises:
            CheckpointError: It cannot be written.
        """
        line = _metrics_line(metrics)
        with write_errors(self.path):
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def repair_metrics(folder: Path, step: int) -> None:
    """Remove the lines of metrics after ``step``, and damaged lines, with a warning.

    Args:
        folder: The run's folder.
        step: Completed updates that the run continues from.
    """
    path = folder / NAME
    content = b"".join(_metrics_line(line) for line in read_metrics(folder) if line["step"] <= step)
    if path.is_symlink() or (path.exists() and path.read_bytes() != content):
        write_atomically(path, content)


def has_metrics_line(folder: Path, step: int) -> bool:
    """Return whether a run's metrics have a line of a step."""
    return any(line["step"] == step for line in read_metrics(folder))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, in order of "step"; of each step the last line.

    A last line that was cut short is skipped. Damaged lines are skipped with a warning.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    parsed = [(number, parse_metrics_line(line)) for number, line in enumerate(lines, 1) if line.strip()]
    found = {line["step"]: line for _, line in parsed if line is not None}
    if (whole := parse_metrics_line(rest)) is not None:  # only its line break is missing
        found[whole["step"]] = whole
    if damaged := [number for number, line in parsed if line is None]:
        log(f"warning: {path} is damaged: {_line_numbers_text(damaged)} left out")
    return [found[step] for step in sorted(found)]


def parse_metrics_line(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics: numbers by name, "step" among them; None if the line is anything else."""
    if len(line) > _LONGEST:
        return None
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not all(_is_number(value) or value is None for value in found.values()):
        return None
    step = found.get("step")
    return found if isinstance(step, int) and step >= 0 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line_numbers_text(numbers: Sequence[int]) -> str:
    """Some line numbers, as "line 3 is" or "3 lines (the first is 7) are"."""
    return f"line {numbers[0]} is" if len(numbers) == 1 else f"{len(numbers)} lines (the first is {numbers[0]}) are"


def _metrics_line(metrics: Mapping[str, Any]) -> bytes:
    """Return metrics as a line of JSON, in which NaN and infinity become null."""
    return (json.dumps(finite_or_none(metrics), allow_nan=False) + "\n").encode()
