"""Options of a command or a part, read off an attrs class (or, for a part made by a function, off its signature)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import cache, partial
from typing import Any, get_type_hints

import attrs
from attrs import NOTHING, frozen

from diffkit.cli.parsing.docstrings import section
from diffkit.cli.parsing.values import shown
from diffkit.options import CHOICES
from diffkit.registry.listing import summary

_METADATA = "diffkit.cli"


def _nothing() -> str:
    return ""


@frozen
class Option:
    """One option.

    Attributes:
        path: Its name as in Python; an option of a part has two, such as ("schedule", "s").
        kind: Type of its value.
        default: NOTHING if it is required; for help only.
        about: Returns its description; called for help only.
        group: Heading in the help.
        about_group: Returns the description of the group in one line.
        positional: It is given by position, not by name.
        short: A one-letter name such as "-n".
        metavar: Name of its value in the help, if not its type.
        chooses: It chooses what fills a slot, which has options of its own.
        special: It is of the parser, such as ``--config``, not of the command.
        field: The attrs field with converter and validator, if there is one.
        key: Its place in a configuration file: ``schedule.s``.
        flag: Its spelling on the command line: ``--schedule.s``.
    """

    path: tuple[str, ...]
    kind: Any
    default: Any
    about: Callable[[], str] = attrs.field(eq=False)
    group: str
    about_group: Callable[[], str] = attrs.field(default=_nothing, eq=False)
    positional: bool = False
    short: str = ""
    metavar: str = ""
    chooses: bool = False
    special: bool = False
    field: Any = attrs.field(default=None, eq=False, repr=False)
    key: str = attrs.field()
    flag: str = attrs.field()

    @key.default
    def _key(self) -> str:
        return ".".join(self.path)

    @flag.default
    def _flag(self) -> str:
        return self.key.upper() if self.positional else f"--{self.key}".replace("_", "-")

    @property
    def negative(self) -> str:
        """The spelling that switches it off: ``--no-resume``, ``--backbone.no-checkpoint``."""
        return spelled((*self.path[:-1], f"no-{self.path[-1]}"))

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


def special(metavar: str = "") -> dict[Any, Any]:
    """Metadata of an option of the parser itself."""
    return {_METADATA: {"special": True, "metavar": metavar}}


def options_of(
    factory: Callable[..., Any] | tuple[Option, ...], prefix: tuple[str, ...] = (), group: str = "Options"
) -> list[Option]:
    """Options of an attrs class or a function, in the order they are written; of options, themselves."""
    if isinstance(factory, tuple):
        return [attrs.evolve(option, group=group) for option in factory]
    if isinstance(factory, type) and attrs.has(factory):
        return list(_of_class(factory, prefix, group))
    return _of_signature(factory, prefix, group)


def undecided(cls: type[Any], *names: str) -> tuple[Option, ...]:
    """Return some options of a class without their defaults, for a command that leaves them alone unless they are set.

    Args:
        cls: The attrs class.
        names: The options.
    """
    return tuple([attrs.evolve(option, default=None) for option in options_of(cls) if option.key in names])


@cache
def _of_class(cls: type[Any], prefix: tuple[str, ...], group: str) -> tuple[Option, ...]:
    try:
        hints = get_type_hints(cls)
    except Exception:  # an annotation that names what only a type checker imports, or a third party's of any form
        hints = _hints_one_by_one(cls)
    found = []
    for field in attrs.fields(cls):
        if not field.init:
            continue
        kind = hints.get(field.name, Any)
        default = None if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        about = partial(_help_of_field, cls, field.name)
        about_group = partial(_what_it_is, cls, group) if prefix else _nothing
        path = (*prefix, field.alias or field.name)
        key = ".".join(path)
        more = {"about": about, "about_group": about_group, "field": field} | field.metadata.get(_METADATA, {})
        if choices := field.metadata.get(CHOICES):
            more["metavar"] = "|".join(choices)
        flag = key.upper() if more.get("positional") else "--" + key.replace("_", "-")
        found.append(Option(path, kind, default, group=group, key=key, flag=flag, **more))
    return tuple(found)


def _help_of_field(cls: type[Any], name: str) -> str:
    texts = (section(base.__doc__, "Attributes").get(name) for base in cls.__mro__)
    return next((text for text in texts if text), "")


def _what_it_is(cls: type[Any], group: str) -> str:
    """One line about a part: of its file if the file is its own, else of its class."""
    module = sys.modules[cls.__module__]
    own_file = module.__name__.rpartition(".")[2] == group.rpartition(" ")[2]
    return summary(module.__doc__ if own_file else cls.__doc__)


def _of_signature(factory: Callable[..., Any], prefix: tuple[str, ...], group: str) -> list[Option]:
    found = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = NOTHING if parameter.default is parameter.empty else parameter.default
        annotation = None if parameter.annotation is parameter.empty else parameter.annotation
        kind = _evaluated(annotation, getattr(factory, "__globals__", {}))
        about = partial(_help_of_argument, factory, name)
        found.append(Option((*prefix, name), kind, default, about, group, partial(summary, factory.__doc__)))
    return found


def _help_of_argument(factory: Callable[..., Any], name: str) -> str:
    return section(factory.__doc__, "Args").get(name, "")


def _hints_one_by_one(cls: type[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = vars(sys.modules[base.__module__])
        for name, each in vars(base).get("__annotations__", {}).items():
            found[name] = _PLAIN[each] if each in _PLAIN_NAMES else _evaluated(each, names)
    return found


_PLAIN: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str)}
_PLAIN_NAMES = tuple(_PLAIN)  # in which an annotation that is no text, and cannot be hashed, is looked for as well


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """A type, or Any where the annotation names what only a type checker imports."""
    try:
        found = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    except Exception:  # a third party's annotation may raise any error; the option's text is then used as it is
        return Any
    return found if found is not None and isinstance(found, Hashable) else Any


# ---- the steps of sampling -------------------------------------------------------------------------------------------

Steps = int | str | tuple[int, ...] | None

_FORMS = (
    'How many levels to visit, or "10,15,20" (so many in each third); "ddim50", "leading50", "trailing50", '
    '"linspace50" (evenly by number); "quad20", "time20", "logsnr20", "karras20", "karras20:rho=5" (evenly by another '
    'variable); "karras20:exact", "karras20:exact:sigma_min=0.03", "exponential20", "beta20", "sigmas:values=9,2,0.5" '
    '(noise levels between those of training); "ays_sd15", "ays_sd15:20", "ays_sd15:exact", "grid.json" (a grid that '
    "comes with diffkit, or of a file)."
)


STEPS: dict[Any, Any] = {_METADATA: {"about": lambda: _FORMS}}
"""Metadata of an option ``--steps``, whose help lists all forms of a spacing."""
