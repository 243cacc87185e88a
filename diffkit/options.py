"""Options of a part: attrs fields that check type and range and raise one-line errors.

    @frozen
    class Cosine(NoiseSchedule):
        s: float = number(0.008, ge=0)

A bool is never accepted as a number, nor 1.7 as an integer; an integer is a valid float. NumPy's numbers become
Python's, so that options can be written as JSON.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import attrs

from diffkit.errors import OptionError

_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": (">=", operator.ge),
    "gt": (">", operator.gt),
    "le": ("<=", operator.le),
    "lt": ("<", operator.lt),
}


def _out_of_bounds(name: str, value: Any, bounds: dict[str, float]) -> OptionError:
    allowed = " and ".join(
        f"{_BOUNDS[key][0]} {limit if isinstance(limit, int) else f'{limit:g}'}" for key, limit in bounds.items()
    )
    return OptionError(f"must be {allowed}", option=name, value=value)


_PYTHON_ONLY = "diffkit.python_only"
CHOICES = "diffkit.choices"
"""Key of the metadata of a field that holds the words it may be."""

_LARGEST = 1e18
"""Squares of larger numbers, and of numbers below 1 / this, are outside the range of float32, the dtype of steps."""


def check_number(name: str, value: Any, **bounds: float) -> float:
    """Return ``value`` as a float, or raise `OptionError`; bounds are ge, gt, le, lt."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError("must be a number", option=name, value=value)
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise OptionError("must be finite", option=name, value=value)
    if found != 0 and not 1 / _LARGEST <= abs(found) <= _LARGEST:
        raise OptionError(f"must be 0 or of a size from {1 / _LARGEST:g} to {_LARGEST:g}", option=name, value=value)
    for key, limit in bounds.items():
        if not _BOUNDS[key][1](found, limit):
            raise _out_of_bounds(name, value, bounds)
    return found


def check_integer(name: str, value: object, **bounds: float) -> int:
    """Return ``value`` as an int, or raise `OptionError`; bounds are ge, gt, le, lt."""
    number = value if type(value) is int else _int_if_integer(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise OptionError("must be an integer", option=name, value=value)
    for key, limit in bounds.items():
        if not _BOUNDS[key][1](number, limit):
            raise _out_of_bounds(name, number, bounds)
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
            check_number(attribute.name, value, **bounds)

    return attrs.field(default=default, validator=check, converter=float_if_number)


def integer(
    default: Any = attrs.NOTHING, *, optional: bool = False, metadata: dict[Any, Any] | None = None, **bounds: float
) -> Any:
    """Field holding an int; arguments as in `number`, and metadata of the field."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            check_integer(attribute.name, value, **bounds)

    return attrs.field(default=default, validator=check, converter=_int_if_integer, metadata=metadata)


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool, or raise `OptionError` unless it is True or False; NumPy's are accepted."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise OptionError("must be True or False", option=name, value=value)


def check_callable(name: str, value: object, call: str) -> None:
    """Raise `OptionError` unless ``value`` is callable; ``call`` shows the signature in the message."""
    if not callable(value):
        raise OptionError(f"{name} must be a function, called as {call}, got a {type(value).__name__}")


def flag(default: bool) -> Any:
    """Field holding True or False."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, bool):
            raise OptionError("must be True or False", option=attribute.name, value=value)

    return attrs.field(default=default, validator=check)


def choice(default: str | None, among: tuple[str, ...], *, optional: bool = False) -> Any:
    """Field holding one of a few words, or None if it is optional."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in among and not (optional and value is None):
            raise OptionError(f"must be one of {', '.join(map(repr, among))}", option=attribute.name, value=value)

    return attrs.field(default=default, validator=check, metadata={CHOICES: among})


def integers(default: Any = attrs.NOTHING, *, optional: bool = False, single: bool = False, **bounds: float) -> Any:
    """Field holding a tuple of ints; a list is accepted, as JSON and TOML have no tuples, with ``single`` also one."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, tuple):
            raise OptionError("must be a list of integers", option=attribute.name, value=value)
        for item in value:
            check_integer(f"each of {attribute.name}", item, **bounds)

    convert = _tuple_of(_int_if_integer)
    return attrs.field(default=default, validator=check, converter=_listed(convert) if single else convert)


def word(default: Any = attrs.NOTHING, *, optional: bool = False) -> Any:
    """Field holding a text that is not empty, or None if it is optional."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None) and (not isinstance(value, str) or not value):
            raise OptionError("must be a text", option=attribute.name, value=value)

    return attrs.field(default=default, validator=check)


_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def duration(default: float | None) -> Any:
    """Field holding seconds, > 0, also taken from a text such as "2h" or "1h30m"; None only if it is the default."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (default is None and value is None):
            if isinstance(value, str):
                raise OptionError("must be seconds, or such as '2h', '1h30m'", option=attribute.name, value=value)
            check_number(attribute.name, value, gt=0)

    return attrs.field(default=default, validator=check, converter=_seconds)


def _seconds(value: Any) -> Any:
    """The seconds of a text such as "1h30m"; anything else as it is."""
    if not isinstance(value, str):
        return float_if_number(value)
    text = value.replace(" ", "")
    pieces = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if "".join(map("".join, pieces)) == text and text:
        return sum(float(count) * _SECONDS[unit] for count, unit in pieces)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else value


def numbers(
    default: Any = attrs.NOTHING, *, optional: bool = False, single: bool = False, count: int = 0, **bounds: float
) -> Any:
    """Field holding a tuple of finite numbers, ``count`` if it is given.

    A list is accepted, and with ``single`` also one number.
    """

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, tuple):
            raise OptionError("must be a list of numbers", option=attribute.name, value=value)
        if count and len(value) != count:
            raise OptionError(f"must be {count} numbers", option=attribute.name, value=value)
        for item in value:
            check_number(f"each of {attribute.name}", item, **bounds)

    convert = _tuple_of(_plain_if_number)
    return attrs.field(default=default, validator=check, converter=_listed(convert) if single else convert)


def words(default: tuple[str, ...] = ()) -> Any:
    """Field holding a tuple of texts, none of them empty; a list is accepted, and so is one text."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
            raise OptionError("must be a list of words", option=attribute.name, value=value)

    def converted(value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    return attrs.field(default=default, validator=check, converter=converted)


def python_object(check: Callable[[Any, attrs.Attribute[Any], Any], object]) -> Any:
    """Field holding an object, such as a network or a function, that no file and no command line can hold.

    Two parts are equal only if it is the same object.

    Args:
        check: Validator, ``check(instance, attribute, value)``.
    """
    return attrs.field(validator=check, eq=id, metadata={_PYTHON_ONLY: True})


def python_objects(factory: Callable[..., object]) -> tuple[str, ...]:
    """Names of a part's options that hold objects; a part with any is made in Python only."""
    known = attrs.fields(factory) if isinstance(factory, type) and attrs.has(factory) else ()
    return tuple(f.alias or f.name for f in known if f.metadata.get(_PYTHON_ONLY))


def float_if_number(value: Any) -> Any:
    """Return a real number of any type as a float; anything else, and a bool, unchanged."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits, which the check refuses
        return value


def _plain_if_number(value: Any) -> Any:
    """A number as Python's int or float, whichever it is."""
    return int(value) if not isinstance(value, bool) and isinstance(value, Integral) else float_if_number(value)


def _int_if_integer(value: Any) -> Any:
    """An integer of any type as Python's int; anything else, and a bool, unchanged."""
    if isinstance(value, bool):
        return value
    try:
        return int(operator.index(value))
    except TypeError:
        return value


def _tuple_of(convert: Callable[[Any], Any]) -> Callable[[object], object]:
    def converted(value: object) -> object:
        return tuple([convert(item) for item in value]) if isinstance(value, list | tuple) else value

    return converted


def _listed(convert: Callable[[object], object]) -> Callable[[object], object]:
    """The same conversion, which also accepts one number in place of a list."""

    def converted(value: Any) -> object:
        return convert((value,) if not isinstance(value, bool) and isinstance(value, Real) else value)

    return converted


def option_names(factory: Callable[..., object]) -> tuple[str, ...] | None:
    """Names of a part's options; None if they are unknown: a function, or a class with an __init__ of its own."""
    if not isinstance(factory, type):
        return None
    if attrs.has(factory):
        return tuple([f.alias or f.name for f in attrs.fields(factory) if f.init])
    if dataclasses.is_dataclass(factory):
        return tuple(f.name for f in dataclasses.fields(factory) if f.init)
    for base in factory.__mro__[:-1]:
        # Protocols have an __init__ from typing, which sets object's own on the first class made with it.
        own = not vars(base).get("_is_protocol") and vars(base).get("__init__", object.__init__)
        if own and own is not object.__init__:
            return None
    return ()


def required_options(factory: Callable[..., object]) -> tuple[str, ...]:
    """Names of a part's options without a default, as far as they are known."""
    known = attrs.fields(factory) if isinstance(factory, type) and attrs.has(factory) else ()
    return tuple([f.alias or f.name for f in known if f.init and f.default is attrs.NOTHING])
