"""Classifier-free guidance: away from the network's estimate without the condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from diffkit.options import flag, number
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, extrapolate, place_field, scale
from diffkit.parts.guidance._with_and_without import WithAndWithout, null_option
from diffkit.protocols import Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("guidance").register("cfg")
@frozen
class ClassifierFree(WithAndWithout):
    """``x_start = without + scale (with - without)``: estimates with the condition and with the null condition.

    Both are of x_start, which is the same as guiding eps or v; a learned variance is that of the estimate with the
    condition. Two evaluations for each one of the sampler.

    Attributes:
        scale: 1 is the network as it is, 0 without the condition, above 1 stronger than it was trained. A tensor (B,)
            has one for each example of the call.
        interval: (low, high): guide only where the noise-to-signal ratio sigma / alpha is above low and at most high;
            steps outside of it cost a single evaluation.
        rescale: Share in [0, 1] of bringing the standard deviation of each example's estimate back to what it is with
            the condition, against overexposure at a large scale; 0.7 is the paper's.
        null: Conditions that mean "none": name -> a number, which fills the condition; a tensor (of one example, one
            row, or one for each example); a text; a mapping or list of such; or None to leave the condition out. By
            default those of the backbone (``null_class=True``: the last label), or of `diffkit.compose`.
        joint: One call of twice the batch; False makes two calls, needs less memory, and takes null conditions of
            another length.
        by_level: Share of the scale at each level: "linear" or "cosine", which grow from 0 without signal to 1 without
            noise; a table of (sigma / alpha, share), also as a text, "0.1:0,1:1"; or a function of log-SNR, in tensors.
    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, whose w is scale - 1; Kynkaanniemi et al. 2024,
        arXiv:2404.07724 (interval); Lin et al. 2023, arXiv:2305.08891, section 3.4 (rescale).
    Deviates: the last one rescales the network's output; x_start is rescaled here, so that it means the same for every
        parameterization.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 1.0)

    scale: Scale = scale()
    interval: tuple[float, float] | None = interval()
    rescale: float = number(0.0, ge=0, le=1)
    null: Mapping[str, Any] | None = null_option()
    joint: bool = flag(True)
    by_level: ByLevel = by_level()
    _place: int = place_field()

    def combined(self, with_it: Tensor, without: Tensor, weight: float | Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the estimate moved away from that without the condition."""
        guided = extrapolate(without, with_it, weight)
        return self._rescaled(guided, with_it) if self.rescale else guided

    def _rescaled(self, guided: Tensor, with_it: Tensor) -> Tensor:
        import torch

        after, before = _spread(guided), _spread(with_it)
        factor = torch.where(after > 0, before / after.where(after > 0, 1), 1)
        return guided * torch.lerp(torch.ones_like(factor), factor, self.rescale)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each example, (B,1..)."""
    return x.flatten(1).std(1, correction=0).view(-1, *(1,) * (x.ndim - 1))
