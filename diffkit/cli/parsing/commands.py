"""The table of commands: ``diffkit train`` is `commands/train.py`, ``diffkit data check`` `commands/data__check.py`.

Those of other packages are modules of the same form, found by entry points of the group ``diffkit.command``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, cast

from diffkit._version import __version__
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.registry import BUILT_IN, COMMAND, Entry, registry
from diffkit.registry.listing import as_typed


class CommandModule(Protocol):
    """The members of a command's module; its docstring is the help."""

    SPEC: CommandSpec

    @abstractmethod
    def run(self, parsed: ParsedOptions) -> None:
        """Do the work."""


def load(command: Entry) -> CommandModule:
    """Import the module of a command."""
    return cast("CommandModule", registry(COMMAND.name).get(command.qualified))


def built_in() -> dict[str, Entry]:
    """Return the commands of diffkit as they are typed; imports none and reads no metadata."""
    return {
        as_typed(name): Entry(COMMAND.name, name, BUILT_IN, __version__, f"{COMMAND.package}.{name}")
        for name in registry(COMMAND.name).built_in_names()
    }


def table() -> dict[str, Entry]:
    """Return every command as it is typed, those of diffkit first; imports none.

    One of another package never replaces a built-in one, and of two with one name neither has it: they are typed as
    ``distribution:name``.
    """
    ours = built_in()
    others = [entry for entry in registry(COMMAND.name).entries() if entry.origin != BUILT_IN]
    names = [as_typed(entry.name) for entry in others]
    taken = [*ours, *names]
    pairs = zip(names, others, strict=True)
    return ours | {name if taken.count(name) == 1 else f"{e.origin}:{name}": e for name, e in pairs}
