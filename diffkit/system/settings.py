"""What `diffkit.compose` was given beside the parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Settings:
    """What `diffkit.compose` was told beside the parts; together with them it rebuilds the system."""

    data_shape: tuple[int, ...]
    num_steps: int
    train_spacing: Any
    rescale_time: bool
    clip_x_start: bool
    bins: int | Mapping[str, Any] | None
    time_argument: str | None
    null_conditions: Mapping[str, Any] | None = None
