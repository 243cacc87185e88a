"""Training: `train` a system on data into a run folder, resumable to the bit; `TrainConfig` is how."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.training.config import TrainConfig as TrainConfig
    from diffkit.training.logs import read_metrics as read_metrics
    from diffkit.training.loop import train as train

_HOME = {"TrainConfig": "config", "read_metrics": "logs", "train": "loop"}
__all__ = ["TrainConfig", "read_metrics", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffkit.training.{_HOME[name]}"), name)
