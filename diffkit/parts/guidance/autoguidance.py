"""Autoguidance: away from a worse version of the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import python_object
from diffkit.parts.guidance._networks import networks_among
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, Weighted, extrapolate, place_field, scale
from diffkit.protocols import Composition, Conditions, Estimate, Evaluate, Guidance, Level, Model, NetworkGuidance
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor, nn


def _check_model(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) or isinstance(value, type):
        raise OptionError("must be a network or a system", option="model", value=value)


@registry("guidance").register("autoguidance")
@frozen
class Autoguidance(Weighted, NetworkGuidance):
    """``x_start = worse + scale (network - worse)``: estimates of the network and of a worse one of its kind.

    The worse one is smaller or trained for a shorter time, on the same data, levels and prediction, and is called with
    the same conditions. A learned variance is the better network's.

    Attributes:
        model: The worse network, or the system it was trained in.
        scale: 1 is the network as it is; about 2 is usual; a number, or a tensor (B,).
        interval: Noise-to-signal ratios (low, high) between which it acts; everywhere by default.
        by_level: As in 'cfg'.
    Source: Karras et al. 2024, arXiv:2406.02507.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 1.0)

    model: Model = python_object(_check_model)
    scale: Scale = scale()
    interval: tuple[float, float] | None = interval()
    by_level: ByLevel = by_level()
    _place: int = place_field()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The worse network."""
        return networks_among(self.model)

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return the differences in kind of the worse system."""
        worse = _parts_of(self.model)
        if worse is None:
            return
        if self.model.network is None:  # type: ignore[attr-defined]  # it is a system
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
        system: Any = self.model
        network = self if _parts_of(system) is None else attrs.evolve(self, model=system.network)
        return super(Autoguidance, network).bind(parts)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate moved away from the worse network's."""
        better, worse = evaluate(x, level, conditions), evaluate(x, level, conditions, self.model)
        return better.with_x_start(extrapolate(worse.x_start, better.x_start, self.weight_at(x, level, conditions)))


def _parts_of(model: object) -> Composition | None:
    """The parts of a system; None for a network."""
    found = getattr(model, "parts", None)
    return found if isinstance(found, Composition) else None
