"""The table of commands: ``diffkit train`` is `commands/train.py`, ``diffkit data check`` `commands/data__check.py`.

Those of other packages are modules of the same form, found by entry points of the group ``diffkit.command``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast

from attrs import frozen

from diffkit.cli.parsing.docstrings import summary
from diffkit.cli.parsing.sources import docstring_of
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.registry import BUILT_IN, COMMAND, registry


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
        origin: "diffkit", or the distribution that offers it.
        module: Dotted name of its module.
        registered: Its name in the registry of commands.
    """

    name: str
    origin: str
    module: str
    registered: str

    @property
    def docstring(self) -> str:
        """Docstring of its module, which is not imported."""
        return docstring_of(self.module)

    @property
    def one_line(self) -> str:
        """What it does, in one line."""
        return summary(self.docstring)

    def load(self) -> CommandModule:
        """Import its module."""
        return cast("CommandModule", registry(COMMAND.name).get(f"{self.origin}:{self.registered}"))


def built_in() -> dict[str, Command]:
    """Return the commands of diffkit by name; imports none and reads no metadata."""
    names = registry(COMMAND.name).built_in_names()
    found = zip(as_typed(names), names, strict=True)
    return {name: Command(name, BUILT_IN, f"{COMMAND.package}.{own}", own) for name, own in found}


def table() -> dict[str, Command]:
    """Return every command by name, those of diffkit first; imports none.

    One of another package never replaces a built-in one, and of two with one name neither has it: they are typed as
    ``distribution:name``.
    """
    ours = built_in()
    others = [e for e in registry(COMMAND.name).entries() if e.origin != BUILT_IN]
    names = as_typed([entry.name for entry in others])
    taken, found = [*ours, *names], dict(ours)
    for entry, name in zip(others, names, strict=True):
        name = name if taken.count(name) == 1 else f"{entry.origin}:{name}"
        found[name] = Command(name, entry.origin, entry.value, entry.name)
    return found


def as_typed(names: Sequence[str]) -> list[str]:
    """How commands are typed whose modules, or entry points, have these names."""
    return [name.rstrip("_").replace("__", " ").replace("_", "-") for name in names]
