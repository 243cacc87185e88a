"""Levels in proportion to the size of their recent losses, which reduces the variance of the bound's gradient."""

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


class History(NamedTuple):
    """The last losses of each level: a ring buffer (T, history) float64, and the number ever seen (T,) int64."""

    values: Tensor
    seen: Tensor


@registry("timesteps").register("loss_second_moment")
@frozen
class LossSecondMoment(TimestepSampler):
    """``p(t)`` in proportion to ``sqrt(E[L_t^2])`` over the last losses, mixed with a little of the uniform.

    Uniform until every level has its full history.

    Attributes:
        history: Number of losses stored for each level, 1 to 1,000.
        uniform_prob: Share of the uniform distribution, in (0, 1].
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18; history of 10 and 0.001 as in improved-diffusion.
    Deviates: a loss that is not finite is left out, where improved-diffusion stores it; so is level 0, which
    pads batches of unequal size.
    """

    history: int = integer(10, ge=1, le=1000)
    uniform_prob: float = number(1e-3, gt=0, le=1)

    def init(self, table: ProcessTable) -> History:
        """Return an empty history on the CPU; move it to the device of the losses."""
        import torch

        num_steps = table.num_steps
        return History(
            torch.zeros(num_steps, self.history, dtype=torch.float64), torch.zeros(num_steps, dtype=torch.int64)
        )

    def probabilities(self, state: History) -> Tensor:
        """Return p(t) of levels 1..T, (T,) float64."""
        size = state.values.square().mean(1).sqrt()
        return by_size(size, self.uniform_prob, (state.seen >= self.history).all())

    def sample(self, state: History, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels (B,) int64 and weights 1 / (T p) (B,) float32."""
        return draw(self.probabilities(state), u)

    def update(self, state: History, t: Tensor, losses: Tensor) -> History:
        """Return the history with these losses appended in batch order; duplicates of a level are all stored."""
        num_steps, history = state.values.shape
        valid = losses.isfinite() & (t >= 1)
        i = (t - 1).clamp(min=0)
        same = (i[:, None] == i[None, :]) & valid[None, :] & valid[:, None]
        earlier, total = same.tril(-1).sum(1), same.sum(1)
        stored = valid & (earlier >= total - history)
        # Slot T * history receives what is not stored, so that no shape depends on values.
        slot = (i * history + (state.seen[i] + earlier) % history).where(stored, num_steps * history)
        padded = state.values.new_zeros(num_steps * history + 1)
        padded[:-1] = state.values.flatten()
        values = padded.scatter(0, slot, losses.to(padded.dtype))[:-1].view(num_steps, history)
        return History(values, state.seen.scatter_add(0, i, valid.long()))
