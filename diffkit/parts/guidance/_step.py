"""Coefficients of a sampling step, for guidance that moves the step and not the estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from diffkit.errors import Fix, problem
from diffkit.protocols import Composition, MultistageSampler

if TYPE_CHECKING:
    from diffkit.table import F64, ProcessTable

X_START, X_T, TIME = "posterior.coef_x_start", "posterior.coef_x_t", "next.time"
"""Coefficients: of each step's posterior mean, and the time of the level it goes to (at the last, of level 1)."""


def step_columns(table: ProcessTable) -> dict[str, F64]:
    """Return these columns for a table in use, (T+1,) each."""
    posterior = table.posterior()
    # a level that repeats the one below has no shift: its variance is 0 apart from a floor
    coef_x_start = np.where(posterior.coef_x_start > 0, posterior.coef_x_start, 1.0)
    below = np.maximum(np.arange(table.num_steps + 1) - 1, 1)
    return {X_START: coef_x_start, X_T: posterior.coef_x_t, TIME: table.time[below]}


def mean_problems(parts: Composition, instead: Fix) -> Iterable[str]:
    """Return why some evaluations of the composition's sampler start no step, and what would work instead."""
    sampler = parts.sampler
    if isinstance(sampler, MultistageSampler) and sampler.nodes(parts.table.steps()) is not None:
        yield problem(f"it moves a step, but {parts.label('sampler')} evaluates between levels", fix=instead)
