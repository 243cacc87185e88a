"""Running means of the weights at several rates, in float32 whatever the network computes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffkit.options import check_number
from diffkit.training.power_ema import WIDEST, power_ema_decay


class Ema:
    """Running means of weights: ``mean <- rate mean + (1 - rate) weights`` after every update, at first the weights.

    Plain lists of tensors and torch's own averaging function take a quarter of the time of AveragedModel, which also
    copies the weights at its first update instead of averaging. A mean in bfloat16 would never change.

    Args:
        network: The parameters that require a gradient are averaged; the means start as copies of them.
        rates: Decay rates, each in [0, 1); a single one may be a number.
        warmup: Start with shorter means: update n uses ``min(rate, (1 + n) / (10 + n))``.
        widths: Relative widths of power-function means, each in (0, 0.28].
    Attributes:
        rates: Decay rates.
        widths: Relative widths of power-function means; see `diffkit.training.power_ema`.
        labels: A name for each mean, those of the rates first: that of its file in a checkpoint.
        names: Names of the parameters that are averaged.
        means: For each label, one float32 tensor for each name.
    """

    def __init__(
        self,
        network: nn.Module,
        rates: Sequence[float] | float,
        *,
        warmup: bool = True,
        widths: Sequence[float] | float = (),
    ):
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.rates = tuple(check_number("each of rates", rate, ge=0, lt=1) for rate in _as_sequence(rates))
        self.widths = tuple(check_number("each of widths", width, gt=0, le=WIDEST) for width in _as_sequence(widths))
        self.labels = (*map(ema_label, self.rates), *map(power_label, self.widths))
        self.names = tuple(trained)
        self.weights: list[Tensor] = list(trained.values())
        self._converts = not {p.dtype for p in self.weights} <= {torch.float32}
        self.warmup = warmup
        self.means = [[p.detach().float().clone() for p in self.weights] for _ in self.labels]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the running means by the weights after update ``step`` (the first is 0).

        The decay rates depend on the step, so a resumed run must continue its count.
        """
        weights = [p.float() for p in self.weights] if self._converts else self.weights
        for rate, means in zip(self._decays(step), self.means, strict=True):
            get_ema_multi_avg_fn(rate)(means, weights, None)  # type: ignore[no-untyped-call]

    def _decays(self, step: int) -> list[float]:
        most = (1 + step) / (10 + step) if self.warmup else 1.0
        return [*(min(rate, most) for rate in self.rates), *(power_ema_decay(width, step) for width in self.widths)]

    def state(self, label: str, network: nn.Module) -> dict[str, Tensor]:
        """Return the network's state dict with one of the means in place of its weights."""
        return self.in_place_of_weights(label, network.state_dict(keep_vars=True))

    def in_place_of_weights(self, label: str, variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `state` does, from ``network.state_dict(keep_vars=True)``."""
        mean = {id(p): m for p, m in zip(self.weights, self.means[self.labels.index(label)], strict=True)}
        return {name: mean.get(id(t), t.detach()) for name, t in variables.items()}

    @torch.no_grad()
    def restore(self, label: str, state: Mapping[str, Tensor]) -> None:
        """Restore one of the means from a state dict that `state` returned."""
        _copy_tensors(self.means[self.labels.index(label)], (state[name] for name in self.names))


def ema_label(rate: float) -> str:
    """Return the name of the mean of some decay rate."""
    return f"ema_{rate}"


def power_label(width: float) -> str:
    """Return the name of the power-function mean of some relative width."""
    return f"power_{width}"


def _as_sequence(values: Sequence[float] | float) -> Sequence[float]:
    return values if isinstance(values, Sequence) else (values,)


def _copy_tensors(into: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
