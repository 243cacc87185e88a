"""Options of a part: attrs fields that check type and range and say so in one line.

    @frozen
    class Cosine(NoiseSchedule):
        s: float = number(0.008, ge=0)

A bool is never taken for a number, nor 1.7 for an integer; an integer is a valid float.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import attrs

from diffkit._errors import OptionError

_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": (">=", operator.ge),
    "gt": (">", operator.gt),
    "le": ("<=", operator.le),
    "lt": ("<", operator.lt),
}


def _in_bounds(name: str, value: float, bounds: dict[str, float]) -> None:
    if all(_BOUNDS[key][1](value, limit) for key, limit in bounds.items()):
        return
    wanted = " and ".join(f"{_BOUNDS[key][0]} {limit:g}" for key, limit in bounds.items())
    raise OptionError(f"{name} must be {wanted}, got {value!r}")


def check_number(name: str, value: object, **bounds: float) -> float:
    """Return ``value`` as a float, or raise `OptionError`; bounds are ge, gt, le, lt."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise OptionError(f"{name} must be finite, got {value!r}")
    _in_bounds(name, value, bounds)
    return float(value)


def check_integer(name: str, value: object, **bounds: float) -> int:
    """Return ``value`` as an int, or raise `OptionError`; bounds are ge, gt, le, lt."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(f"{name} must be an integer, got {value!r}")
    number = operator.index(value)
    _in_bounds(name, number, bounds)
    return int(number)


def number(default: Any = attrs.NOTHING, *, optional: bool = False, **bounds: float) -> Any:
    """Field holding a finite float.

    Args:
        default: Value if none is given; required if left out.
        optional: Accept None as well.
        bounds: Any of ge, gt, le, lt.
    """

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            check_number(attribute.name, value, **bounds)

    return attrs.field(default=default, validator=check, converter=_float_if_int)


def integer(default: Any = attrs.NOTHING, *, optional: bool = False, **bounds: float) -> Any:
    """Field holding an int; arguments as in `number`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            check_integer(attribute.name, value, **bounds)

    return attrs.field(default=default, validator=check)


def flag(default: bool) -> Any:
    """Field holding True or False."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, bool):
            raise OptionError(f"{attribute.name} must be True or False, got {value!r}")

    return attrs.field(default=default, validator=check)


def choice(default: str | None, among: tuple[str, ...], *, optional: bool = False) -> Any:
    """Field holding one of a few words, or None if it is optional."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in among and not (optional and value is None):
            raise OptionError(f"{attribute.name} must be one of {', '.join(map(repr, among))}, got {value!r}")

    return attrs.field(default=default, validator=check)


def integers(default: Any = attrs.NOTHING, *, optional: bool = False, **bounds: float) -> Any:
    """Field holding a tuple of ints; a list is accepted, so that JSON and TOML can say it."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, tuple):
            raise OptionError(f"{attribute.name} must be a list of integers, got {value!r}")
        for item in value:
            check_integer(f"each of {attribute.name}", item, **bounds)

    return attrs.field(default=default, validator=check, converter=_tuple_if_list)


def numbers(default: Any = attrs.NOTHING, *, optional: bool = False, single: bool = False, **bounds: float) -> Any:
    """Field holding a tuple of finite numbers; a list is accepted, and with ``single`` one number for a list of it."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, tuple):
            raise OptionError(f"{attribute.name} must be a list of numbers, got {value!r}")
        for item in value:
            check_number(f"each of {attribute.name}", item, **bounds)

    return attrs.field(default=default, validator=check, converter=_tuple_if_number if single else _tuple_if_list)


def _float_if_int(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _tuple_if_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _tuple_if_number(value: object) -> object:
    one = isinstance(value, int | float) and not isinstance(value, bool)
    return (value,) if one else _tuple_if_list(value)
