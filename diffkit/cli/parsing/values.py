"""Values of options: from the text of a command line, and strictly checked whatever they came from.

True is never 1, and 1.7 is never 1. The word "none" stands for None where None is allowed, since neither a command
line nor TOML has a word of its own for it.
"""

from __future__ import annotations

import ast
import stat
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from diffkit.errors import OptionError

_TOML = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def from_text(text: str, kind: Any) -> Any:
    """Return the value a command-line word stands for.

    Args:
        text: The word.
        kind: Type of the option.
    Raises:
        OptionError: The text is not of that type; it reads "must be ..., got ...".
    """
    if text.lower() == "none" and _none_is_none(kind):
        return None
    _check_word(text, kind)
    _check_file_or_folder(text, kind)
    for candidate in _candidates(kind):
        try:
            return accept(_read(text, candidate), candidate)
        except (ValueError, SyntaxError):
            continue
    raise OptionError(f"must be {wanted(kind)}, got {text!r}")


def accept(value: Any, kind: Any) -> Any:
    """Return a value of a type, from TOML or Python; a list becomes a tuple, and so does one item where a list may be.

    Raises:
        OptionError: It is not of that type; the text reads "must be ..., got ...", as TOML spells values.
    """
    if value is None or (value == "none" and _none_is_none(kind) and str not in _candidates(kind)):
        if _allows_none(kind):
            return None
        raise OptionError(f"must be {wanted(kind, in_file=True)}, got none")
    _check_word(value, kind)
    _check_file_or_folder(value, kind)
    for candidate in _candidates(kind):
        try:
            return _accept_one(value, candidate)
        except ValueError:
            continue
    said = repr(value) if isinstance(value, str) else toml(value)
    raise OptionError(f"must be {wanted(kind, in_file=True)}, got {said}")


def _check_word(value: Any, kind: Any) -> None:
    """Refuse an empty word, which would name the folder at hand, and a path that no file can have."""
    if Path in _candidates(kind) and isinstance(value, str) and "\0" in value:
        raise OptionError(f"must be without a zero byte, got {value!r}")
    if value == "" and {str, Path} & set(_candidates(kind)):
        raise OptionError("must not be empty")


def _check_file_or_folder(value: Any, kind: Any) -> None:
    """Refuse a path to a pipe or device, which would be waited for without end, or replaced; a shell's own is fine."""
    if Path not in _candidates(kind) or not isinstance(value, str | Path) or str(value).startswith("/dev/fd/"):
        return
    try:
        mode = Path(value).stat().st_mode
    except (OSError, ValueError):
        return  # it is missing; opening it will report that
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OptionError(f"must be a file or folder, got {str(value)!r}, which is a pipe or device")


def wanted(kind: Any, *, in_file: bool = False) -> str:
    """Description of the allowed values: on a command line, or in a file."""
    words = dict.fromkeys(_word(candidate, in_file) for candidate in _candidates(kind))
    if _none_is_none(kind) and kind is not Any:
        words["'none'" if in_file else "none"] = None
    return " or ".join(words)


def metavar(kind: Any) -> str:
    """Name of the value in the help; a word of a command line is read as a text only if nothing else fits."""
    candidates = [candidate for candidate in _candidates(kind) if typing.get_origin(candidate) is not Mapping]
    words = list(dict.fromkeys(map(_metavar, candidates)))
    return "|".join(words[: words.index("TEXT") + 1] if "TEXT" in words else words)


def item_of(kind: Any) -> Any:
    """Type of the items of a homogeneous sequence type; None if it is not a sequence."""
    if typing.get_origin(kind) in (tuple, list, Sequence):
        return typing.get_args(kind)[0]
    return None


def is_flag(kind: Any) -> bool:
    """True if the option is a switch."""
    return _candidates(kind) == (bool,)


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
    """A value as a TOML file would spell it."""
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
    return '"' + "".join(map(_toml_character, str(value))) + '"'


def _toml_character(one: str) -> str:
    if one in _TOML:
        return _TOML[one]
    return one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"


def _candidates(kind: Any) -> tuple[Any, ...]:
    """Members of a union in the order a text is tried: numbers before words before sequences; None is left out."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        members = [a for a in typing.get_args(kind) if a is not types.NoneType]
        return tuple(sorted(members, key=_rank))
    return (kind,)


def _rank(kind: Any) -> int:
    order: list[Any] = [bool, int, float]
    return order.index(kind) if kind in order else 8 if kind in (str, Path) else 9


def _allows_none(kind: Any) -> bool:
    return kind is Any or kind is None or types.NoneType in typing.get_args(kind)


def _none_is_none(kind: Any) -> bool:
    """Whether the word stands for None: not where it is a choice by itself."""
    return _allows_none(kind) and not any("none" in typing.get_args(candidate) for candidate in _candidates(kind))


def _read(text: str, kind: Any) -> Any:
    """The value of a text, not checked yet; ValueError if it has none."""
    if kind is bool:
        return _read_bool(text)
    if kind in (int, float, str, Path):
        return kind(text)
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == text), text)
    if typing.get_origin(kind) is Mapping:
        raise ValueError(text)
    item = item_of(kind)
    if item is not None:
        words = [word.strip() for word in text.strip("()[] ").split(",")]
        return tuple(_read_number(word) if item is float else _read(word, item) for word in words if word)
    return _literal(text)


def _read_bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _read_number(text: str) -> int | float:
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


def _accept_one(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return _checked(value, value in typing.get_args(kind))
    item = item_of(kind)
    if item is not None:
        items = value if isinstance(value, tuple | list) else [value]
        accepted = tuple(accept(each, item) for each in items)
        return tuple(items) if item is float else accepted  # among numbers an integer stays one, as in Python
    if typing.get_origin(kind) is Mapping:
        return dict(_checked(value, isinstance(value, Mapping)))
    if kind is Path:
        return Path(_checked(value, isinstance(value, str | Path)))
    check = _CHECKS.get(kind, lambda value: True)
    return float(_checked(value, check(value))) if kind is float else _checked(value, check(value))


_CHECKS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
}


def _checked(value: Any, good: bool) -> Any:
    if not good:
        raise ValueError(value)
    return value


def _word(kind: Any, in_file: bool) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    item = item_of(kind)
    if item is not None:
        items = {int: "integers", float: "numbers"}.get(item, "words")
        return f"a list of {items}" if in_file else f"{items} separated by commas"
    if typing.get_origin(kind) is Mapping:
        return "a table"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(kind, "a value")


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    item = item_of(kind)
    if item is not None:
        return f"{_metavar(item)},..."
    return {int: "INT", float: "NUMBER", bool: "", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")
