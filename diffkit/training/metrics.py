"""Metrics of training: accumulated on the device at every step, read once per line.

Each loss is weighted by 1 / (T p(t)), as in the training objective, so that means over levels are those of uniform
levels whatever the timestep sampler's distribution p. Means over a quartile of the levels (q0 is nearest to clean data)
are weighted means with the same weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

QUARTILES = 4
FIXED_NAMES = frozenset({"step", "samples", "grad_norm", "param_norm", "lr", "skipped", "images_per_s", "loss_scale"})
"""Names in a line of metrics besides those of the terms of a loss."""


@frozen(eq=False)
class MetricsWindow:
    """The metrics of the training steps since the last line of metrics, one row of numbers per step.

    A row holds, for each quartile, the sums of the weights and of each weighted term; then the gradient's norm, and
    whether the optimizer took the step. Rows are added up in float64 and in order, so that a line is the same to the
    bit even if training was interrupted in between.

    Attributes:
        rows: Of each step, (4 (1 + terms) + 2,) float32.
    """

    rows: list[Tensor] = field(factory=list)

    def add(self, sums: Tensor, grad_norm: Tensor, finite: Tensor) -> None:
        """Add the row of one training step; ``sums`` is the result of `quartile_sums` over its whole batch."""
        self.rows.append(torch.cat([sums.flatten(), grad_norm.float().view(1), finite.float().view(1)]))

    def read(self, names: Sequence[str], batch_size: int) -> dict[str, float | None]:
        """Return the means of the metrics over the window, without skipped steps, in one read of the device."""
        rows = torch.stack(self.rows).cpu().double().numpy()
        taken = rows[rows[:, -1] == 1]
        if not len(taken):
            return dict.fromkeys((*names, "grad_norm"))
        sums = taken[:, :-2].sum(0).reshape(1 + len(names), QUARTILES)
        means = sums[1:].sum(1) / (len(taken) * batch_size)
        found: dict[str, float | None] = dict(zip(names, means.tolist(), strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            by_quartile = sums[1:] / sums[0]
        for name, values in zip(names, by_quartile.tolist(), strict=True):
            found |= {f"{name}_q{q}": value for q, value in enumerate(values) if np.isfinite(value)}
        return found | {"grad_norm": float(taken[:, -2].mean())}


def is_of_quartile(name: str) -> bool:
    """Return whether a metric is the mean over a quartile of the levels."""
    return re.fullmatch(r".*_q\d", name) is not None


def finite_or_none(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics with None in place of each number that is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def quartile_sums(terms: Mapping[str, Tensor], level: Tensor, weight: Tensor, num_steps: int) -> Tensor:
    """Return sums over each quartile of the levels, of the weights and of each weighted term, (1 + terms, 4) float32.

    Continuous levels have no quartiles; all of them count as the first quartile.
    """
    values = torch.stack([torch.ones_like(weight), *(term.detach().float() for term in terms.values())])
    if level.is_floating_point():
        return torch.nn.functional.pad((values @ weight)[:, None], (0, QUARTILES - 1))
    quartile = (level - 1) * QUARTILES // num_steps
    places = (quartile[:, None] == torch.arange(QUARTILES, device=level.device)) * weight[:, None]
    return values @ places
