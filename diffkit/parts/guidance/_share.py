"""The share of a scale with which a guidance acts at each level: a shape, a table or a function, in an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from diffkit.errors import OptionError
from diffkit.options import float_if_number
from diffkit.protocols import Level
from diffkit.table import Coefs

if TYPE_CHECKING:
    from torch import Tensor

ByLevel = str | tuple[tuple[float, float], ...] | Callable[[Any], Any] | None
"""The share of a scale at each level; see `by_level`."""

_SHAPES = ("linear", "cosine")
_ROUNDING = 1e-5
"""Relative rounding of levels, float32, at the ends of an interval, where the tensor comparison decides."""


def by_level() -> Any:
    """Field holding the share of a scale at each level, or None for all of it at every level.

    "linear" is ``2 / pi arctan(alpha / sigma)``, which grows from 0 without signal to 1 without noise, evenly over the
    levels of the schedule `cosine`; "cosine" is ``alpha^2 / (alpha^2 + sigma^2)``, flat at both ends. A table of
    (noise-to-signal ratio, share), such as ((0.1, 0), (1, 1)) or the text "0.1:0,1:1", is linear in log-SNR between its
    points and constant beyond them. A function takes log-SNR as a tensor, 0-d or (B,1..), and returns the share.
    """
    return attrs.field(default=None, validator=_check_by_level, converter=_canonical)


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


def share_at(given: ByLevel, within: tuple[float, float] | None, level: Level) -> Tensor | None:
    """Return the share at a level, 0-d or (B,1..); None if it is 1 everywhere.

    Tensor arithmetic throughout, so that one graph serves every level, those between the table's included.
    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724 (interval, with sigma / alpha for its sigma); Wang et al. 2024,
        arXiv:2404.13040 (shares that grow towards clean data).
    Deviates: of the latter; its shapes are functions of the step's number, and have a mean of 1 in place of a largest
        share of 1.
    """
    share = None if given is None else _share_by_level(given, level)
    if within is None:
        return share
    low, high = within
    inside = (level.sigma > low * level.alpha) & (level.sigma / high <= level.alpha)  # high may be infinite
    acts = inside.to(level.sigma.dtype)
    return acts if share is None else acts * share


def no_share(given: ByLevel, within: tuple[float, float] | None, at: Coefs) -> NDArray[np.bool_]:
    """Return at which levels the share is certain to be 0: outside of the interval by more than rounding, or by level.

    A function is not called here: it is for tensors of a step.
    """
    none = np.zeros(np.shape(at.alpha), dtype=bool)
    if within is not None:
        low, high = within
        below, above = at.sigma < low * at.alpha * (1 - _ROUNDING), at.sigma / high > at.alpha * (1 + _ROUNDING)
        none = (at.sigma == 0) | below | above
    if isinstance(given, tuple):
        return np.asarray(none | (np.interp(at.log_snr, *_knots(given)) == 0))
    return np.asarray(none | (at.alpha == 0) if isinstance(given, str) else none)


def _share_by_level(given: ByLevel, level: Level) -> Tensor:
    import torch

    if given == "linear":
        return torch.atan2(level.alpha, level.sigma) * (2 / math.pi)
    if given == "cosine":
        return level.alpha**2 / (level.alpha**2 + level.sigma**2)
    if isinstance(given, tuple):
        return _interpolated(given, level.log_snr)
    assert callable(given), "the field refuses anything else"
    found = given(level.log_snr)
    if not isinstance(found, torch.Tensor):
        raise OptionError(f"by_level must return a tensor of shares, got a {type(found).__name__}")
    return found.to(level.sigma.dtype)


def _interpolated(points: tuple[tuple[float, float], ...], log_snr: Tensor) -> Tensor:
    """A table at levels, whose log-SNR may be infinite."""
    places, shares = _knots(points)
    found = log_snr.new_full((), shares[0])
    for i in range(1, len(places)):
        way = (log_snr - places[i - 1]) / (places[i] - places[i - 1])
        found = found + (shares[i] - shares[i - 1]) * way.clamp(0, 1)
    return found


def _knots(points: tuple[tuple[float, float], ...]) -> tuple[list[float], list[float]]:
    """Log-SNR, ascending, and shares of a table."""
    descending = sorted(points, reverse=True)
    return [-2 * math.log(ratio) for ratio, _ in descending], [share for _, share in descending]


def _check_by_level(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None or callable(value) or (isinstance(value, str) and value in _SHAPES):
        return
    if not isinstance(value, tuple) or not value or not all(map(_is_point, value)):
        raise OptionError(
            "must be 'linear', 'cosine', a table of (noise-to-signal ratio > 0, share) such as ((0.1, 0), (1, 1)), or "
            "a function of log-SNR",
            option=attribute.name,
            value=value,
        )
    if len({ratio for ratio, _ in value}) < len(value):
        raise OptionError("has a noise-to-signal ratio twice", option=attribute.name, value=value)


def _is_point(point: object) -> bool:
    if not isinstance(point, tuple) or len(point) != 2 or not all(map(_is_number, point)):
        return False
    return bool(0 < point[0] < math.inf and math.isfinite(point[1]))


def _canonical(value: Any) -> Any:
    """A table as a tuple of pairs: from lists, or from a text such as "0.1:0,1:1"."""
    if isinstance(value, str) and ":" in value:
        try:
            value = [[float(number) for number in point.split(":")] for point in value.split(",")]
        except ValueError:
            return value
    if not isinstance(value, list | tuple):
        return value
    return tuple([tuple(map(float_if_number, point)) if isinstance(point, list | tuple) else point for point in value])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
