"""The options of a command: their specification, and their parsed values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import Option, spelled
from diffkit.errors import OptionError

T = TypeVar("T")


@frozen
class CommandSpec:
    """The options of a command.

    Attributes:
        options: attrs classes whose fields are its options, or options, under a heading each.
        slots: Kinds of part (or "data") that can be chosen, each with the name of the default (None: no part).
        required: Slots that have to be filled.
        composed: Slots that a saved system fills; options of theirs alone change its part: ``--guidance.scale 2``.
        begins: True if the folder that ``--init`` names decides the parts and levels that nothing else does.
        config: True if the options may also come from a file.
        preset: Which tables of a published configuration are its options too: "composition", "training", "sampling".
        classifier: Its presets are those of classifiers, not of systems.
        without: Options of these classes that it does not have, each with the reason.
        defaults: Words for a default that depends on something, by option name.
    """

    options: Mapping[str, type[Any] | tuple[Option, ...]]
    slots: Mapping[str, str | None] = field(factory=dict)
    required: frozenset[str] = frozenset()
    composed: tuple[str, ...] = ()
    begins: bool = False
    config: bool = False
    preset: tuple[str, ...] = ()
    classifier: bool = False
    without: Mapping[str, str] = field(factory=dict)
    defaults: Mapping[str, str] = field(factory=dict)


@frozen
class ParsedOptions:
    """The parsed options of a command.

    Attributes:
        values: Every option that was set, by its name; options of parts are not among them.
        parts: Kind -> (name, options that were set), for each slot that holds a part.
        chosen: Kinds whose part was named, not the default.
    """

    values: Mapping[str, Any]
    parts: Mapping[str, tuple[str, Mapping[str, Any]]]
    chosen: frozenset[str] = frozenset()

    def make(self, cls: type[T], **more: Any) -> T:
        """Return an instance of an option class from the parsed options and parts; ``more`` fills the others."""
        names = {f.alias or f.name for f in attrs.fields(cls) if f.init}  # type: ignore[arg-type]
        parts = {kind: part for kind, part in self.parts.items() if kind in names}
        return cls(**more | parts | {name: value for name, value in self.values.items() if name in names})

    def refuse(self, text: str, *names: str) -> None:
        """Raise `OptionError` if any of these options was set or parts chosen.

        Args:
            text: Why they cannot be; "{}" in it are those that were.
            names: The options.
        """
        if found := [spelled((name,)) for name in names if name in self.values or name in self.chosen]:
            raise OptionError(text.replace("{}", ", ".join(found), 1))


def chosen(**options: Any) -> dict[str, Any]:
    """Return the options that were given; the others have the defaults of what is called."""
    return {name: value for name, value in options.items() if value is not None}
