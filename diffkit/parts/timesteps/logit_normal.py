"""Levels mostly from the middle of the chain, as a normal distribution of the logit of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import number
from diffkit.parts.timesteps._density import between, draw
from diffkit.protocols import TimestepSampler
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import ProcessTable


@registry("timesteps").register("logit_normal")
@frozen
class LogitNormal(TimestepSampler):
    """``logit(time) ~ N(mean, std^2)``, level k covers times from (k - 1) / T to k / T; a little of the uniform.

    Attributes:
        mean: Mean of the logit; > 0 prefers noisy levels.
        std: Standard deviation of the logit, > 0.
        uniform_prob: Share of the uniform distribution, in (0, 1]; weights stay below 1 over it.
    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    Deviates: weights 1 / (T p) keep the loss unbiased, so that only the variance of the gradient changes. In the
    paper the density changes the objective too, which here is set by the loss alone. Hence the share of the uniform.
    """

    mean: float = number(0.0, ge=-20, le=20)
    std: float = number(1.0, gt=0, le=5)
    uniform_prob: float = number(0.1, gt=0, le=1)

    def init(self, table: ProcessTable) -> Tensor:
        """Return p(t) of levels 1..T, (T,) float64 on the CPU."""
        import torch

        time = torch.arange(table.num_steps + 1, dtype=torch.float64) / table.num_steps
        p = between(torch.special.ndtr((torch.logit(time) - self.mean) / self.std))
        return (1 - self.uniform_prob) * p + self.uniform_prob / table.num_steps

    def sample(self, state: Tensor, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels (B,) int64 and weights 1 / (T p) (B,) float32."""
        return draw(state, u)
