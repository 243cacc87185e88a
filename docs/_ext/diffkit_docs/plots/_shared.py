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


@cache
def _rows(of: diffkit.System) -> dict[str, Tensor]:
    columns = level_coefficients(of.parts, of.table)
    return {name: torch.from_numpy(columns[name][1:].copy()) for name in LEVEL}


def level_of(of: diffkit.System, time: Tensor) -> dict[str, Tensor]:
    """Return alpha, sigma, c_in and so on of a batch that is all at one level, from the network's time."""
    k = (time[0].double() - _rows(of)["time"]).abs().argmin()
    return {name: row[k] for name, row in _rows(of).items()}


def network(oracle: Any, of: diffkit.System) -> Callable[..., Tensor]:
    """An exact denoiser as a network, for batches at one level: `diffkit.testing.network_of` in fewer operations."""

    def model(x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        at = level_of(of, time)
        x_t = x.double() / at["c_in"]
        out: Tensor = (oracle.x_start(x_t, at["alpha"], at["sigma"]) - at["c_skip"] * x_t) / at["c_out"]
        return out.to(x.dtype)

    return model
