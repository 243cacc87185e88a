"""Values of options: read from a word of a command line by cyclopts, checked in a file, and written in either.

Nothing is changed in silence: 1.7 is never 1, True is never 1, "64" of a file is not 64. The word "none" stands for
None where None is allowed, since neither a command line nor TOML has a word of its own for it.
"""

from __future__ import annotations

import ast
import json
import stat
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import attrs
from cyclopts import CycloptsError, convert

from diffkit.errors import OptionError

_ORDER = (bool, int, float, str, Path)
"""Members of a union are tried in this order, lists last."""
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
_PLAIN = {int: int, float: int | float, bool: bool, str: str, Path: str | Path}


# ---- types -----------------------------------------------------------------------------------------------------------


@cache
def members(kind: Any) -> tuple[Any, ...]:
    """Members of a union but None, in the order in which they are tried; of another type, the type itself."""
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return (kind,)
    found = [member for member in typing.get_args(kind) if member is not types.NoneType]
    return tuple(sorted(found, key=lambda member: _ORDER.index(member) if member in _ORDER else len(_ORDER)))


@cache
def item_of(kind: Any) -> Any:
    """Type of the items of a homogeneous sequence type; None if it is not a sequence."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, list, Sequence) else None


@cache
def is_flag(kind: Any) -> bool:
    """True if the option is a switch."""
    return members(kind) == (bool,)


@cache
def has_word(kind: Any) -> bool:
    """True unless only a file can hold its values."""
    return bool([member for member in members(kind) if typing.get_origin(member) is not Mapping])


@cache
def metavar(kind: Any) -> str:
    """Name of the value in the help; a word is read as a text only if nothing else fits."""
    words = list(dict.fromkeys(_metavar(each) for each in members(kind) if typing.get_origin(each) is not Mapping))
    return "|".join(words[: words.index("TEXT") + 1] if "TEXT" in words else words)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if (item := item_of(kind)) is not None:
        return f"{_metavar(item)},..."
    return {int: "INT", float: "NUMBER", bool: "", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")


def _wanted(kind: Any) -> str:
    words = dict.fromkeys(map(_word, members(kind)))
    return " or ".join([*words, *(["none"] if _none_is_none(kind) and kind is not Any else [])])


def _word(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if (item := item_of(kind)) is not None:
        return f"a list of {({int: 'integers', float: 'numbers'}).get(item, 'words')}"
    return "a table" if typing.get_origin(kind) is Mapping else _WORDS.get(kind, "a value")


@cache
def _none_is_none(kind: Any) -> bool:
    """Whether the word stands for None: not where it is a choice by itself."""
    allowed = kind is Any or kind is None or types.NoneType in typing.get_args(kind)
    return allowed and "none" not in [word for member in members(kind) for word in typing.get_args(member)]


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(text: str, kind: Any) -> Any:
    """Return the value a word of a command line stands for; a list has its items separated by commas.

    Raises:
        OptionError: The text is not of that type.
    """
    none = text.lower() == "none"
    return None if none and _none_is_none(kind) else _first(_read, text, kind)


def conform(value: Any, kind: Any) -> Any:
    """Return a value of a file as one of a type; a list becomes a tuple, and so does one item where a list may be.

    Raises:
        OptionError: It is not of that type.
    """
    none = value is None or (value == "none" and str not in members(kind))
    return None if none and _none_is_none(kind) else _first(_conform, value, kind)


def _first(convert: Callable[[Any, Any], Any], value: Any, kind: Any) -> Any:
    """The value as the first member of a type that it is of; an empty text would name the folder at hand."""
    if value == "" and {str, Path} & set(members(kind)):
        raise OptionError("must not be empty")
    for member in members(kind):
        try:
            return convert(value, member)
        except (TypeError, ValueError, SyntaxError, CycloptsError):
            continue
    raise OptionError(f"must be {_wanted(kind)}, got {repr(value) if isinstance(value, str) else toml(value)}")


def _read(text: str, kind: Any) -> Any:
    if (item := item_of(kind)) is not None:
        inner = text if str in members(item) else text.strip("()[] ")  # a pattern of names may end with a bracket
        words = [word.strip() for word in inner.split(",")]
        return tuple(_number(word) if item is float else _read(word, item) for word in words if word)
    if kind is int:
        return int(text)  # cyclopts rounds
    if typing.get_origin(kind) is Mapping:
        raise ValueError(text)
    if kind in _ORDER or typing.get_origin(kind) is Literal:
        return convert(kind, [text])
    return _literal(text)


def _number(text: str) -> int | float:
    """A number as it is written: 2 is an integer, 2.0 is not."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _literal(text: str) -> Any:
    """A number, list or quoted text if it is written as one, else the text; for options of unknown type."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _conform(value: Any, kind: Any) -> Any:
    if (item := item_of(kind)) is not None:
        items = value if isinstance(value, tuple | list) else [value]
        conformed = tuple(conform(each, item) for each in items)
        return tuple(items) if item is float else conformed  # among numbers an integer stays one, as in Python
    if typing.get_origin(kind) is Literal:
        good = value in typing.get_args(kind)
    elif typing.get_origin(kind) is Mapping:
        good = isinstance(value, Mapping)
    else:
        good = isinstance(value, _PLAIN.get(kind, object)) and (not isinstance(value, bool) or kind not in (int, float))
    if not good:
        raise TypeError
    return kind(value) if kind in (float, Path) else dict(value) if isinstance(value, Mapping) else value


def check_path(value: Any) -> None:
    """Refuse a path to neither a file nor a folder, which would be waited for without end, or replaced."""
    if not isinstance(value, Path) or str(value).startswith("/dev/fd/"):
        return
    if "\0" in str(value):
        raise OptionError(f"must be without a zero byte, got {str(value)!r}")
    try:
        mode = value.stat().st_mode
    except (OSError, ValueError):
        return  # it is missing; opening it will report that
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OptionError(f"must be a file or folder, got {str(value)!r}, which is a pipe or device")


# ---- writing ---------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as the command line would spell it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def toml(value: Any) -> str:
    """A value as a TOML file would spell it; an object with options is a table of those that are set."""
    if attrs.has(type(value)):
        return toml({name: each for name, each in attrs.asdict(value, recurse=False).items() if each is not None})
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    text = json.dumps(str(value), ensure_ascii=False)  # quotes and escapes are those of TOML
    return text if text.isprintable() else "".join([c if c.isprintable() else f"\\U{ord(c):08x}" for c in text])
