"""Options of a command or a part, read off an attrs class (or, for a part made by a function, off its signature)."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import NOTHING, frozen

from diffkit.cli.parsing.values import shown

_METADATA = "diffkit.cli"


@frozen
class Option:
    """One option.

    Attributes:
        path: Its name as in Python; an option of a part has two, such as ("schedule", "s").
        kind: Type of its value.
        default: NOTHING if it is required; for help only, where `UNKNOWN_DEFAULT` shows none.
        help: Its description.
        group: Heading in the help.
        group_help: Description of the group in one line.
        positional: Given by position, not by name.
        short: A one-letter name such as "-n".
        metavar: Name of its value in the help, if not its type.
        chooses: It chooses what fills a slot, which has options of its own.
        special: It is of the parser, such as ``--config``, not of the command.
        field: The attrs field with converter and validator, if there is one.
    """

    path: tuple[str, ...]
    kind: Any
    default: Any
    help: str
    group: str
    group_help: str = ""
    positional: bool = False
    short: str = ""
    metavar: str = ""
    chooses: bool = False
    special: bool = False
    field: Any = attrs.field(default=None, eq=False, repr=False)

    @property
    def key(self) -> str:
        """Its place in a configuration file: ``schedule.s``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """Its spelling on the command line: ``--schedule.s``."""
        return self.path[0].upper() if self.positional else spelled(self.path)

    @property
    def negative(self) -> str:
        """The spelling that switches it off: ``--no-resume``, ``--backbone.no-checkpoint``."""
        return spelled((*self.path[:-1], f"no-{self.path[-1]}"))

    @property
    def identifier(self) -> str:
        """Its name as a Python argument."""
        return "__".join(self.path)

    @property
    def default_text(self) -> str:
        """Its default in words, or an empty string."""
        empty = self.default is NOTHING or self.default is False or self.default in (None, "", ())
        return "" if empty else shown(self.default)


def spelled(path: tuple[str, ...]) -> str:
    """Command-line spelling of a name: "_" is written "-"."""
    return "--" + ".".join(path).replace("_", "-")


POSITIONAL: dict[Any, Any] = {_METADATA: {"positional": True}}
"""Metadata of a field that is given by position: ``attrs.field(metadata=POSITIONAL)``."""


def short(letter: str) -> dict[Any, Any]:
    """Metadata of a field that has a one-letter name as well: ``attrs.field(default=16, metadata=short("-n"))``."""
    return {_METADATA: {"short": letter}}


def helped(text: str) -> dict[Any, Any]:
    """Metadata of a field whose help several classes share, instead of a docstring's entry."""
    return {_METADATA: {"help": text}}


def options_of(factory: Callable[..., Any], prefix: tuple[str, ...] = (), group: str = "Options") -> list[Option]:
    """Options of an attrs class or a function, in the order they are written."""
    if isinstance(factory, type) and attrs.has(factory):
        return _of_class(factory, prefix, group)
    return _of_signature(factory, prefix, group)


def _of_class(cls: type[Any], prefix: tuple[str, ...], group: str) -> list[Option]:
    texts = {n: t for base in reversed(cls.__mro__) for n, t in section(base.__doc__, "Attributes").items()}
    found = []
    for field in attrs.fields(cls):
        if not field.init:
            continue
        name = field.alias or field.name
        default = None if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        found.append(
            Option(
                path=(*prefix, name),
                kind=_type_of(cls, field.name, field.type),
                default=default,
                group=group,
                group_help=_what_it_is(cls, group) if prefix else "",
                field=field,
                **{"help": texts.get(field.name, "")} | field.metadata.get(_METADATA, {}),
            )
        )
    return found


def _what_it_is(cls: type[Any], group: str) -> str:
    """One line about a part: of its file if the file is its own, else of its class."""
    module = sys.modules[cls.__module__]
    own_file = module.__name__.rpartition(".")[2] == group.rpartition(" ")[2]
    return summary(module.__doc__ if own_file else cls.__doc__)


def _of_signature(factory: Callable[..., Any], prefix: tuple[str, ...], group: str) -> list[Option]:
    texts = section(factory.__doc__, "Args")
    found = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = NOTHING if parameter.default is parameter.empty else parameter.default
        annotation = None if parameter.annotation is parameter.empty else parameter.annotation
        kind = _evaluated(annotation, getattr(factory, "__globals__", {}))
        found.append(Option((*prefix, name), kind, default, texts.get(name, ""), group, summary(factory.__doc__)))
    return found


def _type_of(cls: type[Any], name: str, annotation: Any) -> Any:
    """The field's type, evaluated in the module of the class that wrote it."""
    owner = next((base for base in cls.__mro__ if name in vars(base).get("__annotations__", {})), cls)
    return _evaluated(annotation, vars(sys.modules[owner.__module__]))


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """A type, or Any where the annotation names what only a type checker imports."""
    if annotation is None:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return typing.cast("Any", eval(annotation, dict(names)))
    except Exception:  # a third party's annotation may raise any error; the option's text is then used as it is
        return Any


_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def module_docstring(path: Path) -> str:
    """Docstring of a Python file, or an empty string."""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""


def summary(docstring: str | None) -> str:
    """First line, without backticks and the final period."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    return plain(lines[0]).removesuffix(".") if lines else ""


def plain(text: str) -> str:
    """The text without double or single backticks."""
    return text.replace("`", "")


def section(docstring: str | None, title: str) -> dict[str, str]:
    """Entries of an ``Attributes:`` or ``Args:`` section: name -> text on one line."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _lines_of(inspect.cleandoc(docstring or ""), title):
        entry = _ENTRY.match(line)
        if entry:
            current = [entry[2]]
            found |= dict.fromkeys(entry[1].split(", "), current)
        else:
            current.append(line.strip())
    return {name: plain(" ".join(lines)) for name, lines in found.items()}


def _lines_of(docstring: str, title: str) -> list[str]:
    """Lines of a section, its own indentation removed."""
    lines = docstring.splitlines()
    if f"{title}:" not in lines:
        return []
    body = []
    for line in lines[lines.index(f"{title}:") + 1 :]:
        if line.strip() and not line.startswith("    "):
            break
        body.append(line[4:])
    return [line for line in body if line.strip()]


Steps = int | str | tuple[int, ...] | None


_FORMS = (
    'How many levels to visit, or "10,15,20" (so many in each third); "ddim50", "leading50", "trailing50", '
    '"linspace50" (evenly by number); "quad20", "time20", "logsnr20", "karras20", "karras20:rho=5" (evenly by another '
    'clock); "ays_sd15", "ays_sd15:20", "grid.json" (a grid that comes with diffkit, or of a file)'
)


def steps_help(default: str = "") -> dict[Any, Any]:
    """Metadata of the field, whose help lists all forms of a spacing.

    Args:
        default: The default, if the help does not show it otherwise.
    """
    return helped(_FORMS + (f"; {default} by default." if default else "."))
