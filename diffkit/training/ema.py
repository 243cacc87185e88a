"""Running means of the weights at several rates, kept in float32 whatever the network computes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """``mean <- rate mean + (1 - rate) weights`` after every update, starting as a copy of the weights.

    Plain lists of tensors and torch's own averaging function: a quarter of the cost of AveragedModel, which moreover
    copies the weights at its first update in place of averaging. A mean kept in bfloat16 would never move.

    Attributes:
        rates: Decay rates.
        names: Names of the parameters that are averaged.
        means: Of each rate, one float32 tensor for each name.
    """

    def __init__(self, network: nn.Module, rates: Sequence[float], *, warmup: bool):
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.rates = tuple(rates)
        self.names = tuple(trained)
        self.weights = list(trained.values())
        self.warmup = warmup
        self.means = [[p.detach().float().clone() for p in self.weights] for _ in self.rates]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights as they are after update ``step`` (the first is 0)."""
        weights: list[Tensor] = [p.detach().float() for p in self.weights]
        for rate, means in zip(self.rates, self.means, strict=True):
            now = min(rate, (1 + step) / (10 + step)) if self.warmup else rate
            get_ema_multi_avg_fn(now)(means, weights, None)  # type: ignore[no-untyped-call]

    def state(self, rate: float, network: nn.Module) -> dict[str, Tensor]:
        """Return the network's state dict with the means of one rate in place of its weights."""
        mean = {id(p): m for p, m in zip(self.weights, self.means[self.rates.index(rate)], strict=True)}
        return {name: mean.get(id(t), t.detach()) for name, t in network.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def restore(self, rate: float, state: Mapping[str, Tensor]) -> None:
        """Take the means of one rate from what `state` returned."""
        _copy(self.means[self.rates.index(rate)], (state[name] for name in self.names))


def _copy(into: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
