"""Autoguidance: away from a worse version of the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.guidance._weight import extrapolate, interval, outside
from diffkit.options import number
from diffkit.protocols import (
    BindableGuidance,
    Composition,
    Conditions,
    Estimate,
    Evaluate,
    Guidance,
    IntervalGuidance,
    Level,
    Model,
    NetworkGuidance,
)
from diffkit.system.module import System
from diffkit.table import Coefs


def _check_model(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) or isinstance(value, type):
        raise OptionError(f"model must be a network or a system, got {value!r}")


@frozen(eq=False)
class Autoguidance(NetworkGuidance, BindableGuidance, IntervalGuidance):
    """``x_start = worse + scale (network - worse)``: estimates of the network and of a worse one of its kind.

    The worse one is smaller or trained for a shorter time, on the same data, levels and prediction, and is called with
    the same conditions. A learned variance is the better network's.

    Attributes:
        model: The worse network, or the system it was trained in.
        scale: 1 is the network as it is; about 2 is usual.
        interval: As in `diffkit.guidance.ClassifierFree`.
    Source: Karras et al. 2024, arXiv:2406.02507.
    """

    model: Model = field(validator=_check_model)
    scale: float = number()
    interval: tuple[float, float] | None = interval()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The worse network."""
        return (self.model,) if isinstance(self.model, nn.Module) else ()

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return the differences in kind of the worse system."""
        if not isinstance(self.model, System):
            return
        worse = self.model.parts
        if self.model.backbone is None:
            yield "the worse system was composed with backbone=None; pass its network instead"
        if worse.table != parts.table:
            yield "the worse system was trained on other levels; schedule, num_steps and rescale_time must agree"
        if worse.mean != parts.mean:
            yield f"the worse system predicts by {worse.label('mean')}, this one by {parts.label('mean')}"
        if worse.var.extra_outputs != parts.var.extra_outputs:
            yield f"the worse system has {worse.label('var')}, this one {parts.label('var')}"
        if worse.data_shape != parts.data_shape:
            yield f"the worse system makes data of shape {worse.data_shape}, this one of {parts.data_shape}"

    def bind(self, parts: Composition) -> Guidance:
        """Return this guidance with the worse system's network."""
        network = self.model.backbone if isinstance(self.model, System) else None
        return self if network is None else attrs.evolve(self, model=network)

    def inactive_at(self, at: Coefs) -> NDArray[np.bool_]:
        """Return which levels lie outside of the interval."""
        return outside(self.interval, at)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate moved away from the worse network's."""
        better, worse = evaluate(x, level, conditions), evaluate(x, level, conditions, self.model)
        return better.with_x_start(extrapolate(worse.x_start, better.x_start, self.scale, self.interval, level))
