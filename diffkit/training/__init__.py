"""Training: `train` a system on data into a run folder, resumable to the bit; `TrainConfig` holds the options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.training.config import TrainConfig as TrainConfig
    from diffkit.training.ema import Ema as Ema
    from diffkit.training.estimate import DryRun as DryRun
    from diffkit.training.estimate import dry_run as dry_run
    from diffkit.training.hook import Hook as Hook
    from diffkit.training.hook import HookFacts as HookFacts
    from diffkit.training.hook import HookResult as HookResult
    from diffkit.training.hook import HookState as HookState
    from diffkit.training.hook import Tracker as Tracker
    from diffkit.training.loop import train as train
    from diffkit.training.metrics_file import read_metrics as read_metrics
    from diffkit.training.posthoc_ema import averaged as averaged
    from diffkit.training.validation import validate as validate

__all__, __getattr__, __dir__ = on_first_use(__name__)
