"""The table of commands: ``diffkit train`` is `commands/train.py`, ``diffkit data check`` `commands/data__check.py`.

Those of other packages are modules of the same form, found by entry points of the group ``diffkit.command``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, cast

from attrs import frozen

from diffkit.cli.parsing.docstrings import summary
from diffkit.cli.parsing.sources import docstring_of
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.registry import BUILT_IN, COMMAND, Entry, registry


class CommandModule(Protocol):
    """The members of a command's module; its docstring is the help."""

    SPEC: CommandSpec

    @abstractmethod
    def run(self, parsed: ParsedOptions) -> None:
        """Do the work."""


@frozen
class Command:
    """One command.

    Attributes:
        name: As it is typed, of one word or two.
        entry: Its entry in the registry of commands.
    """

    name: str
    entry: Entry

    @property
    def docstring(self) -> str:
        """Docstring of its module, which is not imported."""
        return docstring_of(self.entry.value)

    @property
    def one_line(self) -> str:
        """What it does, in one line."""
        return summary(self.docstring)

    def load(self) -> CommandModule:
        """Import its module."""
        return cast("CommandModule", registry(COMMAND.name).get(self.entry.qualified))


def built_in() -> dict[str, Command]:
    """Return the commands of diffkit by name; imports none and reads no metadata."""
    names = registry(COMMAND.name).built_in_names()
    entries = (Entry(COMMAND.name, name, BUILT_IN, "", f"{COMMAND.package}.{name}") for name in names)
    return {typed(entry.name): Command(typed(entry.name), entry) for entry in entries}


def table() -> dict[str, Command]:
    """Return every command by name, those of diffkit first; imports none.

    One of another package never replaces a built-in one, and of two with one name neither has it: they are typed as
    ``distribution:name``.
    """
    ours = built_in()
    others = [e for e in registry(COMMAND.name).entries() if e.origin != BUILT_IN]
    taken = [*ours, *(typed(entry.name) for entry in others)]
    found = [
        Command(name if taken.count(name) == 1 else f"{entry.origin}:{name}", entry)
        for entry in others
        for name in [typed(entry.name)]
    ]
    return {**ours, **{command.name: command for command in found}}


def typed(name: str) -> str:
    """How a command is typed whose module, or entry point, has this name."""
    return name.rstrip("_").replace("__", " ").replace("_", "-")
