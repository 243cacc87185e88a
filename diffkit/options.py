"""Options of a part: attrs fields that check type and range and say so in one line.

    @frozen
    class Cosine(NoiseSchedule):
        s: float = number(0.008, ge=0)

A bool is never taken for a number, nor 1.7 for an integer; an integer is a valid float. NumPy's numbers become
Python's, so that what a part holds can be written as JSON.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import attrs

from diffkit.errors import OptionError

_LARGEST = 2.0**128 - 2.0**104
"""The largest float32, which steps and losses are computed in."""
_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": (">=", operator.ge),
    "gt": (">", operator.gt),
    "le": ("<=", operator.le),
    "lt": ("<", operator.lt),
}


def _in_bounds(name: str, value: Any, bounds: dict[str, float]) -> None:
    if all(_BOUNDS[key][1](value, limit) for key, limit in bounds.items()):
        return
    wanted = " and ".join(f"{_BOUNDS[key][0]} {limit:g}" for key, limit in bounds.items())
    raise OptionError(f"{name} must be {wanted}, got {value!r}")


_LARGEST = 1e18
"""Squares of larger numbers, and those of numbers below 1 / this, are no float32 numbers, in which steps compute."""


def _of_usable_size(name: str, value: float) -> None:
    if value != 0 and not 1 / _LARGEST <= abs(value) <= _LARGEST:
        raise OptionError(f"{name} must be 0 or of a size from {1 / _LARGEST:g} to {_LARGEST:g}, got {value!r}")


def check_number(name: str, value: Any, **bounds: float) -> float:
    """Return ``value`` as a float, or raise `OptionError`; bounds are ge, gt, le, lt."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError(f"{name} must be a number, got {value!r}")
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise OptionError(f"{name} must be finite, got {value!r}")
    _of_usable_size(name, found)
    _in_bounds(name, value, bounds)
    return found


def check_integer(name: str, value: object, **bounds: float) -> int:
    """Return ``value`` as an int, or raise `OptionError`; bounds are ge, gt, le, lt."""
    number = _int_if_integer(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise OptionError(f"{name} must be an integer, got {value!r}")
    _in_bounds(name, number, bounds)
    return number


def number(default: Any = attrs.NOTHING, *, optional: bool = False, **bounds: float) -> Any:
    """Field holding a finite float.

    Args:
        default: Value if none is given; required if left out.
        optional: Accept None as well.
        bounds: Any of ge, gt, le, lt.
    """

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            _of_usable_size(attribute.name, check_number(attribute.name, value, **bounds))

    return attrs.field(default=default, validator=check, converter=_float_if_number)


def integer(default: Any = attrs.NOTHING, *, optional: bool = False, **bounds: float) -> Any:
    """Field holding an int; arguments as in `number`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            check_integer(attribute.name, value, **bounds)

    return attrs.field(default=default, validator=check, converter=_int_if_integer)


def check_flag(name: str, value: object) -> bool:
    """Return ``value``, or raise `OptionError` if it is other than True or False, NumPy's included."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise OptionError(f"{name} must be True or False, got {value!r}")


def check_callable(name: str, value: object, call: str) -> None:
    """Raise `OptionError` unless ``value`` can be called, as ``call`` shows."""
    if not callable(value):
        raise OptionError(f"{name} must be a function, called as {call}, got a {type(value).__name__}")


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

    return attrs.field(default=default, validator=check, converter=_tuple_of(_int_if_integer))


def numbers(default: Any = attrs.NOTHING, *, optional: bool = False, single: bool = False, **bounds: float) -> Any:
    """Field holding a tuple of finite numbers; a list is accepted, and with ``single`` one number for a list of it."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, tuple):
            raise OptionError(f"{attribute.name} must be a list of numbers, got {value!r}")
        for item in value:
            _of_usable_size(f"each of {attribute.name}", check_number(f"each of {attribute.name}", item, **bounds))

    convert = _tuple_of(_plain_if_number)
    return attrs.field(default=default, validator=check, converter=_listed(convert) if single else convert)


def _float_if_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits, which the check refuses
        return value


def _plain_if_number(value: Any) -> Any:
    """A number as Python's int or float, whichever it is."""
    return int(value) if not isinstance(value, bool) and isinstance(value, Integral) else _float_if_number(value)


def _int_if_integer(value: Any) -> Any:
    """A whole number of any type as Python's; what is none, and a bool, as it is."""
    if isinstance(value, bool):
        return value
    try:
        return int(operator.index(value))
    except TypeError:
        return value


def _tuple_of(convert: Callable[[Any], Any]) -> Callable[[object], object]:
    def converted(value: object) -> object:
        return tuple(convert(item) for item in value) if isinstance(value, list | tuple) else value

    return converted


def _listed(convert: Callable[[object], object]) -> Callable[[object], object]:
    """The same conversion, of one number as a list of it."""

    def converted(value: Any) -> object:
        return convert((value,) if not isinstance(value, bool) and isinstance(value, Real) else value)

    return converted


def option_names(factory: Callable[..., object]) -> tuple[str, ...] | None:
    """Names of the options a part takes; None if they cannot be told: a function, or a class with its own __init__."""
    if not isinstance(factory, type):
        return None
    if attrs.has(factory):
        return tuple(f.alias or f.name for f in attrs.fields(factory) if f.init)
    if dataclasses.is_dataclass(factory):
        return tuple(f.name for f in dataclasses.fields(factory) if f.init)
    for base in factory.__mro__[:-1]:
        # Protocols bring an __init__ of typing's, which leaves object's own on the first class made with it.
        own = not vars(base).get("_is_protocol") and vars(base).get("__init__", object.__init__)
        if own and own is not object.__init__:
            return None
    return ()
