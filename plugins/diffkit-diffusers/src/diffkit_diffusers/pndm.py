"""diffusers' PNDM: Adams and Bashforth's weights on eps, started by a repeated step or by Runge-Kutta steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import flag, number
from diffkit.protocols import Coefficients, Denoise, Level, RoutedSampler, State, StepRow
from diffkit.table import Coefs
from diffkit_diffusers._ends import ended

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Steps

LEVELS_OF_RUNGE_KUTTA = 6
"""Three steps of the Runge-Kutta method take two intervals of the levels in use each."""
_COLUMNS = ("own", "total", "eps_1", "eps_2", "eps_3", "new", "at_s", "keep", "add")
"""Of each evaluation: weights of (eps - that of the start of its group), of the sum of these, and of (eps_j - eps) of
earlier groups; then whether it starts a group, is where its step ends, keeps the sum, and by what it adds to it."""
_RUNGE_KUTTA = np.array(
    [
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0, 1 / 3],
        [1, 0, 0, 0, 0, 0, 0, 1, 1 / 3],
        [1 / 6, 1, 0, 0, 0, 0, 1, 0, 0],
    ]
)
_TWICE = np.array([[0, 0, 0, 0, 0, 1, 0, 0, 0], [1 / 2, 0, 0, 0, 0, 0, 1, 0, 0]])
_ADAMS_BASHFORTH = np.array(
    [
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, -1 / 2, 0, 0, 1, 0, 0, 0],
        [0, 0, -16 / 12, 5 / 12, 0, 1, 0, 0, 0],
        [0, 0, -59 / 24, 37 / 24, -9 / 24, 1, 0, 0, 0],
    ]
)


@frozen
class DiffusersPNDM(RoutedSampler):
    """DDIM's step with ``eps' = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24`` in place of eps, and its start.

    With skip_prk_steps the first step is taken twice, the second time with the mean of eps at both ends; then fewer
    estimates are used until there are four. Without it the first three steps are of the Runge-Kutta method of order 4:
    evaluations at their start, twice at their middle, and at their end. Every middle is a level of its own, so a chain
    of n steps has n + 3 levels; one of fewer than seven levels is started as with skip_prk_steps.

    Attributes:
        skip_prk_steps: Which start; Stable Diffusion's is True.
        final_alpha_bar: alpha_bar that the last step goes to, in (0, 1].
    Source: Liu et al. 2022, arXiv:2202.09778, algorithm 2 and eqs. 9 to 13; both starts as in diffusers' PNDMScheduler.
    Deviates: with mean='v' the estimates are of eps; diffusers mixes v of several levels there.
    """

    skip_prk_steps: bool = flag(False)
    final_alpha_bar: float = number(1.0, gt=0, le=1)
    order: ClassVar[int] = 1

    def route(self, log_snr: F64) -> Sequence[tuple[int, int]] | None:
        """Return a step for each evaluation; where two have the same ends, the second is evaluated at the lower one."""
        top = len(log_snr) - 1
        twice = LEVELS_OF_RUNGE_KUTTA if not self.skip_prk_steps and top > LEVELS_OF_RUNGE_KUTTA else min(1, top - 1)
        return [(k, k - 1) for k in range(top, 0, -1) for _ in range(2 if k > top - twice else 1)]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return how far each evaluation leads from the start of its group, and by which estimates."""
        t, s = ended(steps, self.final_alpha_bar)
        rows = self._evaluations(steps)
        plan = dict(zip(_COLUMNS, rows.T, strict=True))
        first = np.maximum.accumulate(np.where(plan["new"] > 0, np.arange(steps.num_steps), 0))
        start = Coefs(*(column[first] for column in t))
        carry = s.sigma / start.sigma
        grow = np.divide(s.alpha, start.alpha, out=np.zeros_like(carry), where=start.alpha > 0)
        change = np.where(start.alpha > 0, s.sigma - grow * start.sigma, 0.0)
        plan |= {name: change * plan[name] for name in _COLUMNS[:5]}
        plan |= {"start": carry, "x_start": s.alpha - carry * start.alpha}
        at_s = plan["at_s"] > 0
        alpha, sigma = (np.where(at_s, b, a) for a, b in zip(t[:2], steps.s[:2], strict=True))
        return plan | {"eps_x": 1 / sigma, "eps_x_start": -alpha / sigma}

    def init(self, x: Tensor) -> State:
        """Return start of a group, its estimate and eps, a sum, and a history of three, each unused before it is set."""
        return tuple(x.new_zeros(x.shape) for _ in range(7))

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s, and the state."""
        c, (start, estimate, first, total, *history) = row.coef, state
        x_start = denoise(x, _level_at(c["at_s"], row.t, row.s)).x_start
        eps = (c["eps_x"] * x).addcmul_(c["eps_x_start"], x_start)
        earlier = [old + c["new"] * (newer - old) for newer, old in zip((first, *history), history, strict=False)]
        start, estimate, first = (
            old + c["new"] * (now - old) for old, now in ((start, x), (estimate, x_start), (first, eps))
        )
        own = eps - first
        y = (c["start"] * start).addcmul_(c["x_start"], estimate).addcmul_(c["own"], own).addcmul_(c["total"], total)
        for j, old in enumerate(earlier, 1):
            y = y.addcmul_(c[f"eps_{j}"], old - eps)
        return y, (start, estimate, first, (c["keep"] * total).addcmul_(c["add"], own), *earlier)

    def _evaluations(self, steps: Steps) -> F64:
        """`_COLUMNS` of each evaluation."""
        n, starts = steps.num_steps, steps.t.log_snr
        first, known = _ADAMS_BASHFORTH[:1], 1
        if n > 1 and starts[0] == starts[1] and steps.s.log_snr[0] == steps.s.log_snr[1] != starts[0]:
            first = _TWICE
            if not self.skip_prk_steps and n > 2 * LEVELS_OF_RUNGE_KUTTA:
                first, known = np.tile(_RUNGE_KUTTA, (LEVELS_OF_RUNGE_KUTTA // 2, 1)), 3
        return np.stack([*first, *(_ADAMS_BASHFORTH[min(known + i, 3)] for i in range(n - len(first)))])


def _level_at(at_s: Tensor, t: Level, s: Level) -> Level:
    """Level s where at_s is 1, and t where it is 0, without a branch."""
    import torch

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(at_s.view(a.shape) > 0, b, a)

    values = [pick(a, b) for a, b in zip(t[:7], s[:7], strict=True)]
    coefficients = t.coefficients
    if t.coefficients is not None and s.coefficients is not None:
        there = s.coefficients.by_owner
        by_owner = {
            owner: {name: pick(a, there[owner][name]) for name, a in columns.items()}
            for owner, columns in t.coefficients.by_owner.items()
        }
        coefficients = Coefficients(by_owner, t.coefficients.owner)
    return Level(*values, coefficients)
