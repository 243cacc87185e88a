"""JSON and TOML from files that may be damaged or hostile: plain data within bounds, or an error of one line.

A file must be a regular file of bounded size in UTF-8. Its content must be at most `DEEPEST` levels deep, without
repeated names, without numbers that are not finite or have more than 64 bits, without half of a surrogate pair (except
those by which Python represents file names), and without names with control characters, so that messages can show them.
"""

from __future__ import annotations

import json
import math
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.errors import DiffkitError
from diffkit.runtime.output import printable

MOST_BYTES = 16 * 2**20  # a thousand times what any of these files holds
DEEPEST = 32  # six levels are written
_LONGEST_SHOWN = 80
_KEYS = re.compile(r"[\n,=\[\]{}]")
"""Characters that end a dotted key of TOML."""
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is a pipe or a device, or has more bytes than ``most``.
    """
    check_ordinary(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def check_ordinary(path: Path) -> None:
    """Raise ValueError if a path is not that of a regular file; OSError if it does not exist."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a folder" if path.is_dir() else "it is a pipe or a device, not an ordinary file")


def parse_json(content: bytes | str) -> Any:
    """Return parsed JSON, or raise ValueError with the problem in one line."""
    try:
        found = json.loads(
            _decode(content), object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"it is more than {DEEPEST} levels deep") from None
    return _check_parsed(found)


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """Return parsed TOML, or raise ValueError with the problem in one line."""
    text = _decode(content)
    try:
        if any(key.count(".") > DEEPEST for key in _KEYS.split(text.replace(" ", "").replace("\t", ""))):
            raise RecursionError  # tomllib takes memory with the square of the depth
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it is more than {DEEPEST} levels deep") from None
    _check_parsed(found, infinite=True)  # the option with an infinite value raises an error that names it
    return found


def readable_json(table: Mapping[str, Any]) -> str:
    """Return a table as JSON, one line for each field, and for each field of a table in it.

    With an indentation, Python's json writes each value by itself, which takes ten times as long.
    """
    return _lines_of_json(table, "\n", 2) + "\n"


def _lines_of_json(table: Mapping[str, Any], end: str, deep: int) -> str:
    lines = [
        f"{end}  {json.dumps(name)}: "
        + (
            _lines_of_json(value, end + "  ", deep - 1)
            if deep > 1 and value and isinstance(value, dict)
            else json.dumps(value)
        )
        for name, value in table.items()
    ]
    return "{" + ",".join(lines) + end + "}"


def json_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object of a file of at most so many bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    found = parse_json(read_bytes(path, most))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {json_type(found)}, not an object")
    return found


def read_json(path: Path, error: type[DiffkitError], remedy: str = "") -> dict[str, Any]:
    """Return the JSON object of a file, or raise an error with the reason, followed by ``remedy``.

    Args:
        path: The file.
        error: Class of the error if the file is missing, cannot be read, or has other content.
        remedy: End of its message.
    """
    try:
        return json_object(path)
    except (OSError, ValueError) as cause:
        raise error(f"{path} cannot be read as JSON: {reason(cause)}{remedy}") from cause


def check_fields(table: Any, what: str, error: type[DiffkitError], /, **kinds: type | tuple[type, ...]) -> None:
    """Raise an error unless parsed JSON is an object with fields of these types.

    Args:
        table: The parsed JSON.
        what: Its name in the message.
        error: Class of the error.
        kinds: The type of each field, or several types; object is any. A field that may be NoneType may be missing.
    """
    if not isinstance(table, Mapping):
        raise error(f"{what} must be an object, got {shown(table)}")
    for name, kind in kinds.items():
        types = kind if isinstance(kind, tuple) else (kind,)
        if name not in table and type(None) not in types:
            raise error(f"{what} lacks {name!r}")
        if not _has_type(table.get(name), types):
            words = " or ".join(_WORDS[each] for each in types if each in _WORDS)
            raise error(f"{name!r} of {what} must be {words}, got {shown(table[name])}")


def reason(error: Exception) -> str:
    """Return why a file could not be read, in printable characters and without the name of the file."""
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error), keep="\n")


def shown(value: Any) -> str:
    """Return a JSON value as text for a message: one short line without control characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def word(value: Any) -> str:
    """Return a JSON value as text for a message: a word, such as a name or a version, without quotes."""
    is_word = isinstance(value, str) and value.isprintable() and len(value) < _LONGEST_SHOWN
    return value if is_word else shown(value)


def json_type(value: Any) -> str:
    """Return the JSON type of a value."""
    return "null" if value is None else _WORDS.get(type(value), f"a {type(value).__name__}")


def _has_type(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value has one of some types; True is not an integer, and an integer is a number."""
    if isinstance(value, bool):
        return bool in kinds or object in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _decode(content: bytes | str) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start} is {content[error.start]:#04x})") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {shown(twice)} twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _check_parsed(found: Any, *, infinite: bool = False) -> Any:
    """Return parsed data after checking all of it, level by level, as it may be too deep for recursion."""
    level = [found]
    for _ in range(DEEPEST + 1):
        for value in level:
            _check_value(value, infinite)
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict | list):
                inside += value.values() if isinstance(value, dict) else value
        level = inside
        if not level:
            return found
    raise ValueError(f"it is more than {DEEPEST} levels deep")


def _check_value(value: Any, infinite: bool) -> None:
    if isinstance(value, dict):
        for name in value:
            _check_text(name)
            if not name.isprintable():
                raise ValueError(f"it has a name with control characters, {shown(name)}")
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        if not infinite and not math.isfinite(value):
            raise ValueError("it has a number that is not finite")
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError(f"it has a number of {value.bit_length()} bits; 64 are the most")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"it has half of a surrogate pair, in {shown(text)}") from None
