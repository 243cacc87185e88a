"""Adaptive projected guidance: classifier-free guidance without the part that overexposes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, place_field, scale
from diffkit.parts.guidance._with_and_without import WithAndWithout, null_option
from diffkit.protocols import Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("apg")
@frozen
class AdaptiveProjected(WithAndWithout):
    """``x_start = with + (scale - 1) (d_across + along d_along)``, d = with - without, cut to a norm.

    d_along is the part of d along the estimate with the condition, which mostly makes colours stronger, d_across the
    rest. The norm of d is at most ``threshold``.

    Attributes:
        scale: 1 is the network as it is, above 1 stronger than it was trained; a number, or a tensor (B,).
        along: Share of the part along the estimate that is kept; 1 without a threshold is classifier-free guidance.
        threshold: Largest norm of d for each example, in units of data, or None for no limit; the paper's is 2.5 to 15
            for images and latents.
        interval: As in 'cfg'.
        null: As in 'cfg'.
        joint: As in 'cfg'.
        by_level: As in 'cfg'.
    Source: Sadat et al. 2024, arXiv:2410.02416, algorithm 1, eqs. 8 to 10.
    Deviates: without its momentum between steps, as a guidance holds no state; with 0 momentum it is the paper's.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 1.0)

    scale: Scale = scale()
    along: float = number(0.0, ge=0, le=1)
    threshold: float | None = number(None, optional=True, gt=0)
    interval: tuple[float, float] | None = interval()
    null: Mapping[str, Any] | None = null_option()
    joint: bool = flag(True)
    by_level: ByLevel = by_level()
    _place: int = place_field()

    def combined(self, with_it: Tensor, without: Tensor, weight: float | Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the estimate moved across itself, away from that without the condition."""
        difference, axes = with_it - without, tuple(range(1, with_it.ndim))
        if self.threshold is not None:
            norm = difference.square().sum(axes, keepdim=True).sqrt()
            difference = difference * (self.threshold / norm.clamp(min=1e-12)).clamp(max=1)
        size = with_it.square().sum(axes, keepdim=True).clamp(min=1e-12)
        along = (difference * with_it).sum(axes, keepdim=True) / size * with_it
        move = difference - (1 - self.along) * along
        return with_it + (weight - 1) * move
