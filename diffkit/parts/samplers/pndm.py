"""PNDM: the classical multistep weights on eps, and DDIM to take the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import choice
from diffkit.parts.samplers._multistep import noise_plan, noise_slopes, noise_step, start_history
from diffkit.protocols import Denoise, MultistageSampler, RoutedSampler, State, StepRow
from diffkit.registry import registry

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from diffkit.table import F64, Steps


@registry("sampler").register("pndm")
@frozen
class PNDM(RoutedSampler, MultistageSampler):
    """DDIM's step with ``eps' = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24`` in place of eps (PLMS).

    Weights of fewer estimates on the first three steps. They belong to even steps: the method is of order 2 on grids
    whose steps change size slowly, and of order 1, as declared, on others; 'lms' and 'deis' have weights for any grid.

    Attributes:
        start: "short" takes the first step as DDIM does. "heun" takes it again by the mean of the estimates at both its
            ends, for one more evaluation, as latent diffusion and diffusers do.
    Source: Liu et al. 2022, arXiv:2202.09778, the pseudo linear multistep method (PLMS).
    Deviates: the first steps take fewer estimates (as in latent diffusion), where the paper spends further evaluations.
    """

    start: str = choice("short", ("short", "heun"))
    order: ClassVar[int] = 1
    uses_last: ClassVar[bool] = False

    def route(self, log_snr: F64) -> Sequence[tuple[int, int]] | None:
        """Return the first step twice for a start by Heun's method, else None."""
        top = len(log_snr) - 1
        if self.start == "short" or top < 2:
            return None
        return [(top, top - 1), *((k, k - 1) for k in range(top, 0, -1))]

    def nodes(self, steps: Steps) -> F64 | None:
        """Return log_snr of the evaluation of each move, (n, 1): at t, and at s of the first step's second move."""
        if self.start == "short":
            return None
        return np.asarray(np.where(_is_second(steps), steps.s.log_snr, steps.t.log_snr))[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t, of x_start and of the earlier estimates of eps."""
        number, second = np.arange(steps.num_steps), _is_second(steps)
        if not second.any():
            weights = _ADAMS_BASHFORTH[np.minimum(number, 3)]
            if self.start == "short":
                return noise_plan(steps, noise_slopes(steps, weights))
            return noise_plan(steps, noise_slopes(steps, _padded(weights))) | {"before": np.zeros(steps.num_steps)}
        # the estimate of the second move stays in the history, where no step reads it
        weights = _AFTER_HEUN[np.minimum(number, len(_AFTER_HEUN) - 1)]
        plan = noise_plan(steps, noise_slopes(steps, weights))
        half, s = noise_slopes(steps, np.full((steps.num_steps, 1), 0.5))[:, 0], steps.s
        # half (eps_s - eps_t), as x was reached by holding eps_t
        change = np.divide(half * s.alpha, s.sigma, out=np.zeros_like(half), where=second)
        plan |= {"x": np.where(second, 1.0, plan["x"]), "x_start": np.where(second, -change, plan["x_start"])}
        return plan | {"before": change}

    def init(self, x: Tensor) -> State:
        """Return a history of three estimates of eps, unused on the first step.

        Of four, and that of x_start before, if the first step is taken twice.
        """
        return start_history(x, 3 if self.start == "short" else 5)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the history."""
        if self.start == "short":
            return noise_step(denoise, x, state, row)
        prediction = denoise(x, row.nodes[0])
        y, history = noise_step(lambda *_: prediction, x, state[:4], row)
        return y.addcmul_(row.coef["before"], state[4]), (*history, prediction.x_start)


_ADAMS_BASHFORTH = np.array([[0, 0, 0], [-1 / 2, 0, 0], [-16 / 12, 5 / 12, 0], [-59 / 24, 37 / 24, -9 / 24]])
"""Weights of (eps_j - eps), j = 1, 2, 3, by how many are known; eps itself has the rest of 1 (Adams and Bashforth)."""
_AFTER_HEUN = np.array(
    [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, -1 / 2, 0, 0],
        [-16 / 12, 0, 5 / 12, 0],
        [-59 / 24, 37 / 24, 0, -9 / 24],
        [-59 / 24, 37 / 24, -9 / 24, 0],
    ]
)
"""The same by move, where the second move's estimate lies between the first one and the later ones."""


def _padded(weights: F64) -> F64:
    return np.pad(weights, ((0, 0), (0, 1)))


def _is_second(steps: Steps) -> NDArray[np.bool_]:
    """Which moves go the way of the first step again, (n,) bool: the second, or none."""
    found = np.arange(steps.num_steps) == 1
    t, s = steps
    again = np.array_equal(t.log_snr[:1], t.log_snr[1:2]) and np.array_equal(s.log_snr[:1], s.log_snr[1:2])
    return np.asarray(found & again)
