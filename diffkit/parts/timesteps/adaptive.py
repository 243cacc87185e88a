"""Levels in proportion to a running mean of their losses, shared by neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from attrs import frozen

from diffkit.options import integer, number
from diffkit.parts.timesteps._density import by_size, draw
from diffkit.protocols import TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import ProcessTable


class Running(NamedTuple):
    """Running means of recent losses.

    Attributes:
        mean: Running mean of each bin's losses, started at 0, (bins,) float64.
        seen: Number of losses seen in each bin, (bins,) int64.
        bin_of: Bin of levels 1..T, (T,) int64.
    """

    mean: Tensor
    seen: Tensor
    bin_of: Tensor


@registry("timesteps").register("adaptive")
@frozen
class Adaptive(TimestepSampler):
    """``p(t)`` in proportion to the running mean of losses in t's bin, mixed with a little of the uniform.

    Neighbouring levels share a bin, so it learns within a few batches where 'loss_second_moment' needs losses of every
    level. Uniform until every bin has seen `warmup` losses.

    Attributes:
        bins: Number of equal ranges of levels, >= 1; at most one for each level.
        decay: Share of the mean that remains after each further loss of a bin, in [0, 1).
        warmup: Number of losses a bin needs before its mean is used, >= 1.
        uniform_prob: Share of the uniform distribution, in (0, 1].
    Source: Kingma & Gao 2023, arXiv:2303.00848, its adaptive noise schedule; 100 bins as there.
    Deviates: weights 1 / (T p) keep the loss unbiased; the mean decays by a bin's own losses, not by steps of training.
    A loss that is not finite is left out, and so is level 0, which pads batches of unequal size.
    """

    bins: int = integer(100, ge=1, le=100_000)
    decay: float = number(0.98, ge=0, lt=1)
    warmup: int = integer(10, ge=1, le=10**9)
    uniform_prob: float = number(0.1, gt=0, le=1)

    def init(self, table: ProcessTable) -> Running:
        """Return empty means on the CPU; move them to the device of the losses."""
        import torch

        bins = min(self.bins, table.num_steps)
        bin_of = torch.arange(table.num_steps) * bins // table.num_steps
        return Running(torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.int64), bin_of)

    def probabilities(self, state: Running) -> Tensor:
        """Return p(t) of levels 1..T, (T,) float64."""
        # The mean starts at 0 and is biased by this factor.
        started = (1 - self.decay ** state.seen.double()).clamp(min=1e-300)
        size = (state.mean / started)[state.bin_of]
        return by_size(size, self.uniform_prob, (state.seen >= self.warmup).all())

    def sample(self, state: Running, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels (B,) int64 and weights 1 / (T p) (B,) float32."""
        return draw(self.probabilities(state), u)

    def update(self, state: Running, t: Tensor, losses: Tensor) -> Running:
        """Return the means with these losses added in batch order, duplicates of a bin all counted."""
        valid = losses.isfinite() & (t >= 1)
        i = state.bin_of[(t - 1).clamp(min=0)]
        same = (i[:, None] == i[None, :]) & valid[None, :]
        later = same.triu(1).sum(1)
        share = (1 - self.decay) * self.decay ** later.double()
        added = (share * losses.double()).where(valid, 0)
        count = state.seen.new_zeros(state.seen.shape).scatter_add(0, i, valid.long())
        decayed = state.mean * self.decay ** count.double()
        return Running(decayed.scatter_add(0, i, added), state.seen + count, state.bin_of)
