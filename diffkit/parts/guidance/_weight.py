"""How strongly a guidance acts at a level: a scale, within an interval of noise levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from diffkit.errors import OptionError
from diffkit.protocols import Level
from diffkit.table import Coefs

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-5
"""Relative rounding of levels, float32, at the ends of an interval, where the tensor comparison decides."""


def interval() -> Any:
    """Field holding (low, high), noise-to-signal ratios sigma / alpha with 0 <= low < high <= inf, or None."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None:
            return
        pair = isinstance(value, tuple) and len(value) == 2 and all(_is_number(end) for end in value)
        if not pair or not 0 <= value[0] < value[1]:  # type: ignore[index]
            raise OptionError(
                "interval must be (low, high), noise-to-signal ratios sigma / alpha with 0 <= low < high, "
                f"got {value!r}"
            )

    return attrs.field(default=None, validator=check, converter=lambda v: tuple(v) if isinstance(v, list) else v)


def extrapolate(
    away_from: Tensor, towards: Tensor, scale: float, within: tuple[float, float] | None, level: Level
) -> Tensor:
    """Return ``away_from + scale (towards - away_from)``; exactly ``towards`` where the interval does not hold."""
    import torch

    return torch.lerp(away_from, towards, weight_at(scale, within, level))


def weight_at(scale: float, within: tuple[float, float] | None, level: Level) -> float | Tensor:
    """Return a scale at a level: 1 where the level is not in the interval; a number if there is none.

    Tensor arithmetic throughout, so that one graph serves every level.
    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724, with sigma / alpha for its sigma.
    """
    if within is None:
        return scale
    low, high = within
    inside = (level.sigma > low * level.alpha) & (level.sigma / high <= level.alpha)  # high may be infinite
    return 1 + (scale - 1) * inside.to(level.sigma.dtype)


def outside(within: tuple[float, float] | None, at: Coefs) -> NDArray[np.bool_]:
    """Return at which levels `extrapolate` is certain to change nothing: those outside by more than rounding."""
    if within is None:
        return np.zeros(np.shape(at.alpha), dtype=bool)
    low, high = within
    below, above = at.sigma < low * at.alpha * (1 - _ROUNDING), at.sigma / high > at.alpha * (1 + _ROUNDING)
    return np.asarray((at.sigma == 0) | below | above)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
