"""CFG-Zero*: classifier-free guidance with the best multiple of the estimate without the condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from diffkit.options import flag
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, place_field, scale
from diffkit.parts.guidance._with_and_without import WithAndWithout, null_option
from diffkit.protocols import Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("cfg_zero")
@frozen
class ClassifierFreeZero(WithAndWithout):
    """``v = s without + scale (with - s without)`` of velocities ``v = eps - x_start``, s for each example.

    s is the multiple of the velocity without the condition that is nearest to that with it, ``<with, without> /
    |without|^2``.

    Attributes:
        scale: 1 is the network as it is, above 1 stronger than it was trained; a number, or a tensor (B,).
        interval: As in 'cfg'.
        null: As in 'cfg'.
        joint: As in 'cfg'.
        by_level: As in 'cfg'.
    Source: Fan et al. 2025, arXiv:2503.18886, eqs. 14 to 16 and algorithm 1.
    Deviates: no step is left out at the beginning (its zero-init); an interval, or fewer steps, does that. On a path
        other than the straight one the velocity is that of the straight path through the same data and noise.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 1.0)

    scale: Scale = scale()
    interval: tuple[float, float] | None = interval()
    null: Mapping[str, Any] | None = null_option()
    joint: bool = flag(True)
    by_level: ByLevel = by_level()
    _place: int = place_field()

    def combined(self, with_it: Tensor, without: Tensor, weight: float | Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the estimate of the guided velocity."""
        slope = (level.alpha + level.sigma) / level.sigma  # v = x / sigma - slope x_start
        base, axes = x / level.sigma, tuple(range(1, x.ndim))
        towards, away = base - slope * with_it, base - slope * without
        best = (towards * away).sum(axes, keepdim=True) / away.square().sum(axes, keepdim=True).clamp(min=1e-12)
        return with_it - (weight - 1) * (towards - best * away) / slope
