"""EDM's deterministic sampler: Heun's method, two evaluations a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.protocols import Denoise, MultistageSampler, State, StepRow
from diffkit_edm._second_order import second_order_plan, second_order_step

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps


@frozen
class EDMHeun(MultistageSampler):
    """Heun's method on the probability flow; the last step, to clean data, is an Euler step with one evaluation.

    T steps cost 2T - 1 evaluations. As published, no step is too long for it: where steps span many e-folds of
    sigma / alpha, as the first of a cosine schedule do, core 'heun' bounds what this one lets overshoot.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    Deviates: written in sigma / alpha, so that it holds on any path; the paper's sigma(t) = t, s(t) = 1 is one.
    """

    order: ClassVar[int] = 2

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t and x_start, and of the correction."""
        return second_order_plan(steps.t, steps.s)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; the state is empty."""
        return second_order_step(denoise, x, row.t, row.s, row.coef, last), state
