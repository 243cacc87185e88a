"""Training: `train` a system on data into a run folder, resumable to the bit; `TrainConfig` is how."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.training.averages import averaged as averaged
    from diffkit.training.config import TrainConfig as TrainConfig
    from diffkit.training.ema import Ema as Ema
    from diffkit.training.logs import read_metrics as read_metrics
    from diffkit.training.loop import train as train
    from diffkit.training.trackers import Tracker as Tracker
    from diffkit.training.trial import DryRun as DryRun
    from diffkit.training.trial import dry_run as dry_run
    from diffkit.training.validation import validate as validate

_HOME = {
    "DryRun": "trial",
    "Ema": "ema",
    "averaged": "averages",
    "TrainConfig": "config",
    "Tracker": "trackers",
    "dry_run": "trial",
    "read_metrics": "logs",
    "train": "loop",
    "validate": "validation",
}
__all__ = ["DryRun", "Ema", "Tracker", "TrainConfig", "averaged", "dry_run", "read_metrics", "train", "validate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffkit.training.{_HOME[name]}"), name)
