"""One step along the straight line from x_t to the estimate of x_start.

Usage:

    system = diffkit.compose(sampler="my_part", backbone="mlp", data_shape=(1, 8, 8))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Denoise, Sampler, State, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class MyPart(Sampler):
    """One step along the straight line from x_t to the estimate of x_start.

    ``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_start``

    Source: which paper, which equation.
    """

    order: ClassVar[int] = 1

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of every step, float64 (T,): all that depends on the levels is computed here."""
        t, s = steps
        keep = s.sigma / t.sigma
        return {"x": keep, "x_start": s.alpha - keep * t.alpha}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; a pure function of its arguments.

        ``noise`` is None here; with ``stochastic: ClassVar[bool] = True`` it is standard normal, of x's shape.
        """
        c = row.coef
        return c["x"] * x + c["x_start"] * denoise(x, row.t).x_start, state
