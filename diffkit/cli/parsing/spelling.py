"""Errors of the library in the words of the command line: ``num_steps=10`` is ``--num-steps 10`` there.

The library's errors are "num_steps must be >= 1" and "use var='learned_range'", as in Python. Four forms are
known: a name, or that of a part's option ("backbone.depth"), with a value, a name that holds "_", a plain name before
"must", and one that begins a line of a list. Anything else is left as it is, and so is what is part of a path, in
quotes, or how Python shows an object.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from diffkit.cli.parsing.options import Option, spelled
from diffkit.cli.parsing.values import is_flag, shown
from diffkit.errors import DiffkitError

_PART = re.compile(r"\s*(\w+) '[^']*'")
_BEFORE, _AFTER = r"(?<![\w./'\"=-])", r"(?![\w=(/'\"]|\.\w)"
_WITH_VALUE = re.compile(_BEFORE + r"(\w+(?:\.\w+)?)=('[^']*'|\([^()]*\)|\[[^\[\]]*\]|\.\.\.|-?\w[\w.+-]*|(?=\s|$))")
_WITH_UNDERSCORE = re.compile(_BEFORE + r"([a-z]+_\w+)" + _AFTER)
_PLAIN = re.compile(
    r"(?:(?<=^)|(?<=each of )|(?<=': ))([a-z]+)(?= must | needs )"
    r"|(?<=leave )([a-z]+)(?= out| at )|(?<=^  )([a-z]+)(?=  )"
)
_NAMED_PART = re.compile(r"\('(\w+)', (\{[^{}]*\})\)")
_OBJECT = re.compile(r"(\b\w+\((?:[^()]|\([^()]*\))*\))")
_NONE = re.compile(_BEFORE + "None" + _AFTER)


@contextmanager
def as_cli_flags(options: Sequence[Option]) -> Iterator[None]:
    """Rewrite errors of the block so that these options appear as flags.

    Raises:
        DiffkitError: Instead of one in Python's spelling, which is its cause.
    """
    try:
        yield
    except DiffkitError as error:
        text = in_flags(str(error), options)
        if text == str(error):
            raise
        raise DiffkitError(text) from error


def in_flags(text: str, options: Sequence[Option]) -> str:
    """Return a message in which options are written as flags."""
    named = {option.path: option for option in options if not option.positional}
    return "\n".join(_line(line, named) for line in text.split("\n"))


def _line(line: str, named: dict[tuple[str, ...], Option]) -> str:
    """One line; if it begins with a part, its options are those of the part."""
    part = _PART.match(line)
    kind = part[1] if part else ""
    return "".join(p if _OBJECT.fullmatch(p) else _words(p, kind, named) for p in _OBJECT.split(line))


def _words(text: str, kind: str, named: dict[tuple[str, ...], Option]) -> str:
    def replaced(spell: Callable[[Option, str], str]) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            option = _find(match[1] or match[match.lastindex or 0], kind, named)
            return match[0] if option is None else spell(option, match[match.lastindex or 0])

        return replace

    text = _WITH_VALUE.sub(replaced(_with_value), text)
    text = _WITH_UNDERSCORE.sub(replaced(lambda option, _: option.flag), text)
    text = _PLAIN.sub(replaced(lambda option, _: option.short or option.flag), text)
    return _NONE.sub("none", text)


def _find(name: str, kind: str, named: dict[tuple[str, ...], Option]) -> Option | None:
    """The option of that name: of the part in the message, of the command, or of the only part that has it."""
    own = named.get((kind, name)) or named.get(tuple(name.split(".")))
    of_parts = [option for path, option in named.items() if path[1:] == (name,)]
    return own or (of_parts[0] if len(of_parts) == 1 else None)


def _with_value(option: Option, value: str) -> str:
    if value == "True":  # of a switch, or of words that all switch it on
        return option.flag
    if is_flag(option.kind) and value == "False":
        return option.negative
    if part := _NAMED_PART.fullmatch(value):
        return f"{option.flag} {part[1]} {_options_of_part(option, ast.literal_eval(part[2]))}"
    plain = re.sub(r",? ", ",", value.strip("()[]")) if value[:1] in ("(", "[") else value.strip("'")
    return f"{option.flag} {'none' if plain == 'None' else plain.rstrip(',')}".rstrip()


def _options_of_part(chosen: Option, options: Mapping[str, object]) -> str:
    """Options of a part that another option chooses: ``--loss.scale-by-steps=false``."""
    words = ((spelled((*chosen.path, name)), shown(value)) for name, value in options.items())
    return " ".join(f"{flag}={word}" if word in ("true", "false") else f"{flag} {word}" for flag, word in words)
