"""Arguments of `diffkit.compose` other than the parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Settings:
    """Arguments of `diffkit.compose` other than the parts; together with the parts they rebuild the system."""

    data_shape: tuple[int, ...]
    num_steps: int
    train_spacing: Any
    rescale_time: bool
    clip_x_start: bool
    bins: int | Mapping[str, Any] | None
    time_argument: str | None
    null_conditions: Mapping[str, Any] | None = None
