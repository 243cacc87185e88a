"""Steps of a flow map: from noise to data in one, or in a few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.errors import problem
from diffkit.options import flag, integer
from diffkit.protocols import Composition, Denoise, EarlyNoiseSampler, RoutedSampler, State, StepRow
from diffkit.table import Coefs, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64


@frozen
class FlowMap(EarlyNoiseSampler, RoutedSampler):
    """``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) A``, A the network's x_start towards s.

    With the exact flow map any number of steps, one included, gives exact samples. One evaluation a step.

    Attributes:
        stochastic: Every step goes to clean data, and the next begins with fresh noise at the next level, as
            consistency models are sampled in several steps. False goes from level to level.
        times: How many times the network takes: 2 where it is given the end of the step; 1 for a consistency model,
            which always goes to clean data, or a distilled one, whose steps have one length.
    Source: Geng et al. 2025, arXiv:2505.13447, eq. 12; stochastic: Song et al. 2023, arXiv:2303.01469, algorithm 1.
    Deviates: written for any path and mean; the step is DDIM's.
    """

    stochastic: bool = flag(False)
    times: int = integer(2, ge=1, le=2)
    order: ClassVar[int] = 1

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report a network that takes another number of times."""
        if composition.times is not None and composition.times != self.times:
            yield problem(
                f"does not fit: the network takes {composition.times}",
                option="times",
                value=self.times,
                fix={"times": composition.times},
            )

    def route(self, log_snr: F64) -> Sequence[tuple[int, int]] | None:
        """Return every level paired with clean data if stochastic, else None."""
        return [(k, 0) for k in range(len(log_snr) - 1, 0, -1)] if self.stochastic else None

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return coefficients of x_t and of the average, and those of the way up to t from where x is."""
        t, s = steps
        keep = s.sigma / t.sigma
        columns = {"keep": keep, "move": s.alpha - t.alpha * keep}
        if not self.stochastic:
            return columns
        here = Coefs(*(np.concatenate([at_t[:1], at_s[:-1]]) for at_t, at_s in zip(t, s, strict=True)))
        grow, std = Steps(t, here).noising()
        return columns | {"grow": grow, "noise": std}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s; the state is empty."""
        coef = row.coef
        if noise is not None:
            x = (coef["grow"] * x).addcmul(coef["noise"], noise)
        average = denoise(x, row.t, to=row.s) if self.times == 2 else denoise(x, row.t)
        return (coef["keep"] * x).addcmul(coef["move"], average.x_start), state
