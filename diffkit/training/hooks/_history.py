"""The metrics and pictures that a run has written, for a tracker that is added to it later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffkit.runtime.run_layout import PREVIEWS, STEPS, step_of
from diffkit.training.hook import Tracker
from diffkit.training.metrics_file import read_metrics


def replay_history(tracker: Tracker, folder: Path, step: int) -> None:
    """Pass a tracker the metrics and previews that a run wrote up to ``step``, in order."""
    history: list[tuple[int, int, Mapping[str, Any] | Path]] = [
        *((line["step"], 0, line) for line in read_metrics(folder) if line["step"] <= step),
        *((number, 1, path) for number, path in _list_previews(folder) if number <= step),
    ]
    for number, _, item in sorted(history, key=lambda each: each[:2]):
        if isinstance(item, Path):
            tracker.preview(number, item)
        else:
            tracker.metrics(item)


def _list_previews(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in (folder / PREVIEWS).glob(f"{STEPS}.png"):
        yield step_of(path), path
