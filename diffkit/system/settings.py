"""Arguments of `diffkit.compose` other than the parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.spacing import Spacing

MOST_STEPS = 10**6
"""Largest number of levels of a table; its columns of float64 then take some 200 MB."""


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
    sampling: Mapping[str, Any] | None = None


def plain_spacing(name: str, spacing: Spacing) -> Spacing:
    """Return a spacing as JSON can hold it: Python's integers for NumPy's, a list for an array or a range.

    Args:
        name: Name of the argument in messages.
        spacing: The spacing.
    Raises:
        OptionError: It is no number and no list of numbers.
    """
    if spacing is None or isinstance(spacing, str):
        return spacing
    if isinstance(spacing, range) and len(spacing) > MOST_STEPS:
        raise OptionError(f"{name} {spacing!r} is more levels than a table holds, {MOST_STEPS}")
    try:
        found: int | list[int] = np.asarray(spacing).tolist()
    except ValueError as error:  # a list of lists of several lengths
        raise OptionError("must be a number of levels or a list of levels", option=name, value=spacing) from error
    return found
