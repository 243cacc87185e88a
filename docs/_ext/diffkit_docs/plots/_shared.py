"""What several kinds draw on: the default composition, and data that is known exactly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import diffkit
from diffkit.system.coefficients import LEVEL, level_coefficients
from diffkit.testing import MixtureOracle

NUM_STEPS = 1000


def default(kind: str) -> str:
    """Name of the part that `diffkit.compose` takes if none is named."""
    found: str = inspect.signature(diffkit.compose).parameters[kind].default
    return found


@cache
def cosine_table(num_steps: int = NUM_STEPS) -> diffkit.ProcessTable:
    """The levels on which parts of other kinds are shown."""
    return system().table


@cache
def system(*shape: int) -> diffkit.System:
    """A system of the cosine schedule without a network, for continuous data."""
    return diffkit.compose(schedule="cosine", backbone=None, data_shape=shape or (1, 1), bins=None, num_steps=NUM_STEPS)


def mixture(means: list[float], weights: list[float], std: float) -> MixtureOracle:
    """A mixture of normals on the line."""
    return MixtureOracle(weights=weights, means=torch.tensor(means)[:, None, None], std=std)


def network(oracle: Any, of: diffkit.System) -> Callable[..., Tensor]:
    """An exact denoiser as a network, for batches at one level: `diffkit.testing.network_of` in fewer operations."""
    columns = level_coefficients(of.parts, of.table)
    rows = {name: torch.from_numpy(columns[name][1:].copy()) for name in LEVEL}

    def model(x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        k = (time[0].double() - rows["time"]).abs().argmin()
        at = {name: row[k] for name, row in rows.items()}
        x_t = x.double() / at["c_in"]
        out = (oracle.x_start(x_t, at["alpha"], at["sigma"]) - at["c_skip"] * x_t) / at["c_out"]
        return out.to(x.dtype)

    return model
