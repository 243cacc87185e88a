"""What guidance that moves a step, rather than an estimate, must know of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from diffkit.protocols import Composition

if TYPE_CHECKING:
    from diffkit.table import F64, ProcessTable

X_START, X_T, TIME = "posterior.coef_x_start", "posterior.coef_x_t", "next.time"
"""Columns of each step's posterior mean, and the time of the level it goes to (of level 1 at the last step)."""


def step_columns(table: ProcessTable) -> dict[str, F64]:
    """Return these columns for a table in use, (T+1,) each."""
    posterior = table.posterior()
    # a level that repeats the one below moves nothing: its variance is 0 but for a floor, and so is any shift
    coef_x_start = np.where(posterior.coef_x_start > 0, posterior.coef_x_start, 1.0)
    below = np.maximum(np.arange(table.num_steps + 1) - 1, 1)
    return {X_START: coef_x_start, X_T: posterior.coef_x_t, TIME: table.time[below]}


def mean_problems(parts: Composition, instead: str) -> Iterable[str]:
    """Return why no step is known at some evaluations of the composition's sampler, and what would work instead."""
    if parts.sampler.nodes(parts.table.steps()) is not None:
        yield f"it moves a step, but {parts.label('sampler')} asks between levels, where none starts; use {instead}"
