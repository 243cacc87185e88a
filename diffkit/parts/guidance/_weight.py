"""The weight of a guidance: a scale, one for all examples or one for each, of which a share acts at each level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import attrs
import numpy as np
from numpy.typing import NDArray

from diffkit.errors import OptionError
from diffkit.options import check_number, float_if_number
from diffkit.parts.guidance._share import ByLevel, no_share, share_at
from diffkit.protocols import (
    BindableGuidance,
    Composition,
    ConditionalGuidance,
    Conditions,
    Guidance,
    IntervalGuidance,
    Level,
)
from diffkit.table import Coefs

if TYPE_CHECKING:
    from torch import Tensor

    Scale = float | Tensor
else:
    Scale = float  # all that a command line and a file can hold


def scale(default: Any = attrs.NOTHING) -> Any:
    """Field holding a number, or a tensor with one for each example of a call, (B,)."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not _is_tensor(value):
            check_number(attribute.name, value)
        elif value.ndim != 1 or not value.is_floating_point():
            raise OptionError(
                f"{attribute.name} must be a number, or a floating-point tensor (B,) with one for each example, got "
                f"{value.dtype} of shape {tuple(value.shape)}"
            )

    return attrs.field(default=default, validator=check, converter=float_if_number, eq=_comparable)


def place_field() -> Any:
    """Field for the place of a guidance in the list of a call."""
    return attrs.field(default=0, init=False, repr=False, eq=False)


class Weighted(ConditionalGuidance, BindableGuidance, IntervalGuidance):
    """Base of guidance with a scale: ``weight = neutral + (scale - neutral) share``, the share a function of the level.

    The neutral scale is the one that changes nothing.
    """

    scale: Scale
    by_level: ByLevel
    interval: tuple[float, float] | None
    _place: int

    @property
    def own_conditions(self) -> frozenset[str]:
        """The scales, if there is one for each example."""
        return frozenset([self.own_name("scales")]) if _is_tensor(self.scale) else frozenset()

    def row_conditions(self, conditions: Conditions, n: int) -> Mapping[str, Any]:
        """Return the scales, if there is one for each example.

        Raises:
            OptionError: Their number is another one.
        """
        rows = self.scale
        if not _is_tensor(rows):
            return {}
        if len(rows) not in (1, n):
            raise OptionError(f"scale must be a number, or one for each of {n} examples, got {len(rows)}")
        return {self.own_name("scales"): rows.expand(n)}

    def bind(self, parts: Composition) -> Guidance:
        """Return this guidance with unique names for its rows."""
        bound: Guidance = attrs.evolve(self)  # type: ignore[misc]  # every part is an attrs class
        object.__setattr__(bound, "_place", len(parts.guidance))
        return bound

    def own_name(self, what: str) -> str:
        """Return the name under which this guidance alone gets rows."""
        return what + (f" for guidance {self._place}" if self._place else "")

    def inactive_at(self, at: Coefs) -> NDArray[np.bool_]:
        """Return which levels have a share of 0."""
        return no_share(self.by_level, self.interval, at)

    def weight_at(self, x: Tensor, level: Level, conditions: Conditions) -> float | Tensor:
        """Return the weight at the level of x: a number if it is the same everywhere, else 0-d or (B,1..)."""
        found = self.scale
        if _is_tensor(found):
            rows: Tensor = conditions.get(self.own_name("scales"), found)
            found = rows.to(device=x.device, dtype=x.dtype).view(-1, *(1,) * (x.ndim - 1))
        share = share_at(self.by_level, self.interval, level)
        if share is None:
            return found
        assert self.neutral is not None, "guidance with a scale has a neutral one"
        return self.neutral[1] + (found - self.neutral[1]) * share


def extrapolate(away_from: Tensor, towards: Tensor, weight: float | Tensor) -> Tensor:
    """Return ``away_from + weight (towards - away_from)``; exactly ``towards`` where the weight is 1."""
    import torch

    return torch.lerp(away_from, towards, weight)


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    if isinstance(value, int | float):
        return False
    from torch import Tensor

    return isinstance(value, Tensor)


def _comparable(value: Any) -> Any:
    """A tensor by identity."""
    return id(value) if _is_tensor(value) else value
