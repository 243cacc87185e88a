"""Levels mostly from the middle of the chain, or from its ends, with heavy tails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.parts.timesteps._density import between, draw
from diffkit.protocols import TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("timesteps").register("mode")
@frozen
class Mode(TimestepSampler):
    """``time = 1 - u - scale (cos(pi u / 2)^2 - 1 + u)``, u uniform; level k covers (k - 1) / T to k / T.

    Attributes:
        scale: In [-1, 2 / (pi - 2)): above 0 prefers the middle, below 0 the ends, 0 is uniform.
    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1; scale = 1.29 as in its experiments.
    Deviates: weights 1 / (T p) keep the loss unbiased, as 'logit_normal' explains.
    """

    scale: float = number(1.29, ge=-1, lt=2 / (math.pi - 2))

    def init(self, table: ProcessTable) -> Tensor:
        """Return p(t) of levels 1..T, (T,) float64 on the CPU."""
        import torch

        edges = 1 - self._uniform_of(np.arange(table.num_steps + 1) / table.num_steps)
        return between(torch.from_numpy(edges))

    def _uniform_of(self, time: F64) -> F64:
        """The u that gives a time, by bisection: time falls from 1 to 0 as u rises."""
        low, high = np.zeros_like(time), np.ones_like(time)
        for _ in range(60):  # halves an interval of one to below rounding
            u = (low + high) / 2
            later = 1 - u - self.scale * (np.cos(math.pi * u / 2) ** 2 - 1 + u) > time
            low, high = np.where(later, u, low), np.where(later, high, u)
        return np.where(time <= 0, 1.0, np.where(time >= 1, 0.0, (low + high) / 2))

    def sample(self, state: Tensor, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels (B,) int64 and weights 1 / (T p) (B,) float32."""
        return draw(state, u)
